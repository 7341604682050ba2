"""Inputs, the golden cases and the tolerances that the tests of the op share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated import emulate

from ops_dcnv3 import available_backends, backends

GOLDEN = Path(__file__).parents[1] / 'golden' / 'op'
CASES = [entry['case'] for entry in json.loads((GOLDEN / 'index.json').read_text())]
BACKENDS = ('reference', 'cpu')
HAS_GPU = available_backends('cuda')['cuda'][0]
# Every other one of the table too, for tests with few and small calls: on a CPU Triton runs in its
# interpreter, where a forward and backward of the smallest image take a third of a second.
OTHERS = [name for name in backends.BACKENDS if name not in (*BACKENDS, 'cuda')]
ALL_BACKENDS = (*BACKENDS, *OTHERS, *(['cuda'] if HAS_GPU else []))
KERNELS = ALL_BACKENDS[1:]
# The CUDA kernels, with atomics and without, as :func:`run` takes them for backends.
CUDA = ('emulated', 'emulated ordered', *(('cuda', 'cuda ordered') if HAS_GPU else ()))

# Largest error of an output or gradient, relative to the largest value of that tensor in float64,
# over the golden cases and the odd shapes of test_values.py, all
# backends, logits or probabilities as mask. Measured on an AVX-512 processor with torch 2.13; the
# tolerance is two to three times that, but for float64. Truth is float64 from the rounded inputs.
TOLERANCES = {
    torch.float64: 1e-12,  # measured 1.2e-15
    torch.float32: 1.3e-5,  # measured 6.0e-6, on the widest image of test_values.py, with logits
    torch.bfloat16: 1.1e-2,  # measured 3.6e-3; Triton's interpreter truncates: below 2^-7
    torch.float16: 1.3e-3,  # measured 4.5e-4
}
# Over the golden cases. float64 and float32 are held to the recorded data themselves, of which
# float32 rounds the positions: measured 4e-15 and 1.3e-6.
GOLDEN_TOLERANCES = {**TOLERANCES, torch.float64: 1e-11, torch.float32: 4e-6}
# Between two float32 sums of the same products in another order, as atomics make them.
REORDERED = 1e-6
NAMES = ('output', 'grad_input', 'grad_offset', 'grad_mask')
# Channels of a group that the C++ kernels cut into blocks of 32, 16, 8, 4 and 1: all their paths at
# once, among them those of 32, 16 and 8 for bfloat16 in pairs.
BLOCK_CHANNELS = 61
# (N, H, W, groups, channels per group) and options.
ODD_SHAPES = [
    pytest.param((2, 5, 7, 3, 5), dict(), id='channels 5'),
    pytest.param((1, 6, 6, 1, 1), dict(), id='one channel'),
    pytest.param((2, 4, 9, 2, 47), dict(), id='channels 47'),
    pytest.param((1, 3, 70, 2, 16), dict(), id='several tiles'),
    pytest.param((0, 5, 6, 2, 8), dict(), id='empty batch'),
    pytest.param((2, 1, 1, 2, 8), dict(), id='1x1 image'),
    pytest.param((1, 2, 3, 2, 8), dict(kernel_size=5, padding=2), id='kernel larger than image'),
    pytest.param((1, 7, 6, 2, 4), dict(kernel_size=(2, 4), padding=(0, 2)), id='even kernel'),
    pytest.param((1, 9, 8, 2, 4), dict(stride=(2, 3), dilation=(2, 1)), id='stride and dilation'),
    pytest.param((1, 9, 5, 2, 4), dict(stride=(1, 10**9)), id='stride beyond the image'),
    pytest.param((2, 6, 5, 4, 8), dict(remove_center=True, offset_scale=1.7), id='no center'),
    pytest.param((1, 0, 4, 2, 4), dict(padding=2), id='image without pixels'),
]
# More, for what only the CUDA kernels distinguish.
CUDA_SHAPES = [
    pytest.param((1, 9, 13, 4, 16), dict(), id='16 channels'),
    pytest.param((2, 6, 5, 3, 32), dict(), id='32 channels'),
    pytest.param((1, 4, 5, 2, 8), dict(), id='8 channels'),
    pytest.param((1, 5, 4, 9, 4), dict(), id='4 channels, 9 groups'),
    pytest.param((1, 3, 4, 2, 24), dict(), id='idle lanes'),
    pytest.param((1, 2, 3, 1, 328), dict(), id='several sections'),
    pytest.param((1, 4, 5, 2, 4), dict(kernel_size=9, padding=4), id='points in chunks'),
]
# Kernels beyond shared memory, for one dtype.
LARGEST_SHAPE = pytest.param((1, 1, 2, 1, 140), dict(kernel_size=46, padding=23), id='all in parts')
# And one for which the emulator takes too long.
GPU_SHAPES = [pytest.param((2, 40, 52, 5, 16), dict(), id='many blocks')]


def golden_case(number: int) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the float64 tensors and the options of one golden case."""
    with np.load(GOLDEN / f'case_{number:02d}.npz') as file:
        params = json.loads(str(file['params']))['params']
        tensors = {
            key: torch.from_numpy(file[key])
            for key in ('input', 'offset', 'mask', 'grad_output', *NAMES)
        }
    options = dict(
        kernel_size=(params['kernel_h'], params['kernel_w']),
        stride=(params['stride_h'], params['stride_w']),
        padding=(params['pad_h'], params['pad_w']),
        dilation=(params['dilation_h'], params['dilation_w']),
        groups=params['group'],
        offset_scale=params['offset_scale'],
        remove_center=params['remove_center'],
    )
    return tensors, options


def run(tensors: dict[str, torch.Tensor], options: dict, dtype: torch.dtype) -> dict:
    """Return output and gradients of the op for ``tensors`` cast to ``dtype``."""
    from ops_dcnv3 import dcnv3

    name, _, ordered = (options.get('backend') or '').partition(' ')
    if name == 'emulated':
        results = emulate(tensors, options, dtype, ordered=bool(ordered))
        return dict(zip(NAMES, results, strict=True))
    if name == 'cuda':
        torch.use_deterministic_algorithms(bool(ordered))
        options = {**options, 'backend': name}
    device = device_of(name)
    inputs = [
        tensors[key].detach().to(device, dtype).requires_grad_()
        for key in ('input', 'offset', 'mask')
    ]
    output = dcnv3(*inputs, **options)
    output.backward(tensors['grad_output'].to(device, dtype))
    results = (output.detach(), *(tensor.grad for tensor in inputs))
    return {name: result.cpu() for name, result in zip(NAMES, results, strict=True)}


def device_of(backend: str) -> str:
    """The device on which the tests run a backend."""
    name = backend.partition(' ')[0]
    on_gpus = name in backends.BACKENDS and 'cuda' in backends.BACKENDS[name].devices
    return 'cuda' if on_gpus and torch.cuda.is_available() else 'cpu'


def operators(backend: str) -> tuple:
    """The operators of a backend of :data:`KERNELS`, forward and backward."""
    prefix = '' if backend in ('cpu', 'cuda') else f'{backend}_'
    names = (f'{prefix}forward', f'{prefix}backward')
    return tuple(getattr(torch.ops.ops_dcnv3, name).default for name in names)


def rounded(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The float64 tensors that ``dtype`` can represent."""
    return {key: value.to(dtype).double() for key, value in tensors.items()}


def golden_truth(
    tensors: dict[str, torch.Tensor], options: dict, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """What a golden case is to give in ``dtype``: the data; for halves, what their inputs give."""
    if dtype in (torch.float64, torch.float32):
        return {name: tensors[name] for name in NAMES}
    return run(rounded(tensors, dtype), {**options, 'backend': 'reference'}, torch.float64)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    scale = max(expected.abs().max().item(), 1e-30) if expected.numel() else 1.0
    difference = (actual.double() - expected).abs()
    return difference.max().item() / scale if difference.numel() else 0.0


def random_inputs(
    batch: int, height: int, width: int, groups: int, group_channels: int, seed: int = 0, **options
) -> dict[str, torch.Tensor]:
    """Random float64 tensors for options of the op; positions stay off the integers."""
    from ops_dcnv3.geometry import num_points, output_size, pair

    sizes = [
        pair(name, options.get(name, default), minimum=0)
        for name, default in (('kernel_size', 3), ('stride', 1), ('padding', 1), ('dilation', 1))
    ]
    out_h, out_w = output_size(height, width, *sizes)
    points = groups * num_points(sizes[0], options.get('remove_center', False))
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    offset = normal(batch, out_h, out_w, points * 2) * 2
    scale = options.get('offset_scale', 1.0)
    fraction = (offset * scale) - (offset * scale).floor()
    offset = offset + torch.where((fraction < 0.1) | (fraction > 0.9), 0.25 / scale, 0.0)
    return dict(
        input=normal(batch, height, width, groups * group_channels),
        offset=offset,
        mask=normal(batch, out_h, out_w, points).sigmoid(),
        grad_output=normal(batch, out_h, out_w, groups * group_channels),
    )
