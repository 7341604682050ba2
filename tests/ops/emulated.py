"""The text of the CUDA kernels, run on the CPU by tests/ops/cuda_emulator.

This shows that indices, barriers, arithmetic, gradients and borders are right; it says nothing of
speed. Warp barriers and shuffles are emulated; see emulator.h for what is checked on the way.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path

import torch
from compiling import EMULATED_CUDA, compile_cpp

from ops_dcnv3.geometry import num_points, output_size, pair

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as in dcnv3_cuda.h


@functools.cache
def library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'libemulated.so')
        compile_cpp('-std=c++17', '-O1', '-fPIC', '-shared', '-o', path, *EMULATED_CUDA)
        loaded = ctypes.CDLL(str(path))
    loaded.emulated_workspace_bytes.restype = ctypes.c_int64
    return loaded


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def emulate(
    tensors: dict[str, torch.Tensor],
    options: dict,
    dtype: torch.dtype,
    *,
    ordered: bool = False,
    order: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Output and gradients from the emulated kernels; offset and mask may be row-strided.

    Args:
        tensors: As of ``op_cases.random_inputs``.
        options: Of ``dcnv3``.
        dtype: To compute in.
        ordered: Without atomics.
        order: In which lanes run: first to last (0), last to first (1), or seeds of random orders.
    """
    input, offset, mask, grad_output = (
        tensors[key].to(dtype) for key in ('input', 'offset', 'mask', 'grad_output')
    )
    sizes = [
        pair(name, options.get(name, default), minimum=0)
        for name, default in (('kernel_size', 3), ('stride', 1), ('padding', 1), ('dilation', 1))
    ]
    batch, height, width, channels = input.shape
    groups, scale = options['groups'], ctypes.c_double(options.get('offset_scale', 1.0))
    out_h, out_w = output_size(height, width, *sizes)
    assert offset.shape[3] == 2 * groups * num_points(sizes[0], options.get('remove_center', False))
    values = [
        *(batch, height, width, out_h, out_w, groups, channels // groups),
        *(value for size in sizes for value in size),
        *(offset.stride(2), mask.stride(2)),
        *(options.get('remove_center', False), options.get('mask_is_logits', False)),
    ]
    problem = (ctypes.c_int64 * 19)(*map(int, values))
    number = DTYPES.index(dtype)
    library().emulated_order(order)

    output = torch.empty(batch, out_h, out_w, channels, dtype=dtype)
    common = (problem, scale, number)
    points = tuple(map(pointer, (offset, mask)))
    assert library().emulated_forward(*common, pointer(input), *points, pointer(output)) == 0

    sums = torch.float64 if dtype == torch.float64 else torch.float32
    grad_input = torch.zeros(input.shape, dtype=sums)
    grad_offset = torch.empty(offset.shape, dtype=dtype)
    grad_mask = torch.empty(mask.shape, dtype=dtype)
    error = library().emulated_backward(
        *(*common, pointer(grad_output), pointer(input), *points),
        *(None if ordered else pointer(grad_input), pointer(grad_offset), pointer(grad_mask)),
    )
    assert error == 0
    if ordered:
        grad_input.fill_(torch.nan)
        size = library().emulated_workspace_bytes(problem, number)
        workspace = torch.empty(size, dtype=torch.uint8)
        error = library().emulated_backward_input_ordered(
            *common, pointer(grad_output), *points, pointer(grad_input), pointer(workspace)
        )
        assert error == 0
    return output, grad_input.to(dtype), grad_offset, grad_mask
