"""Check that a backend computes on this device what :mod:`ops_dcnv3.reference` computes.

GPU kernels cannot be tested on every GPU, driver and compiler. So the first call on a device
computes two small problems with both and compares the results. If they differ,
:func:`ops_dcnv3.backends.choose_backend` takes another backend.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .geometry import num_points, output_size, pairs
from .reference import dcnv3_reference

# Error allowed, relative to the largest value: far above rounding, far below any mistake.
_TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}

# (batch, height, width, groups, channels per group), window, offset_scale, remove_center, logits.
# The layer of InternImage, and all options at once with awkward sizes. The scales are powers of
# two: positions are the same in every dtype, so rounding moves no point across a whole pixel.
_PROBLEMS = (
    ((2, 7, 9, 2, 16), (3, 3, 1, 1, 1, 1, 1, 1), 1.0, False, True),
    ((1, 6, 11, 3, 5), (3, 5, 2, 1, 0, 3, 1, 2), 2.0, True, False),
)


def find_fault(
    call: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, *, backward: bool
) -> str | None:
    """Compare a backend with the reference backend in float64 on the CPU.

    Args:
        call: The backend's call, with the arguments of the operator.
        device: The device to check.
        dtype: The dtype to check; float32 is checked too.
        backward: Compare gradients as well.

    Returns:
        What is wrong, or None.

    Raises:
        torch.OutOfMemoryError: The device has no memory left.
    """

    def check_all() -> str | None:
        for kind in dict.fromkeys((torch.float32, dtype)):
            for problem in _PROBLEMS:
                if fault := _compare(call, device, kind, *problem, backward=backward):
                    return fault
        return None

    # Modes (autocast, inference, fake tensors, transforms) are per thread: a new one has none.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(check_all).result()
        except torch.OutOfMemoryError:  # says nothing about the backend
            raise
        except Exception as error:  # whatever a compiler or driver raises
            return f'its self-check raised {type(error).__name__}: {error}'


def _compare(
    call: Callable[..., Tensor],
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    window: tuple[int, ...],
    offset_scale: float,
    remove_center: bool,
    mask_is_logits: bool,
    *,
    backward: bool,
) -> str | None:
    batch, height, width, groups, group_channels = sizes
    kernel, *steps = pairs(window)
    out = output_size(height, width, kernel, *steps)
    points = num_points(kernel, remove_center)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    image = random(batch, height, width, groups * group_channels)
    # As from one linear layer, so that strided views are checked.
    joint = random(batch, *out, groups * points * 3)
    grad_output = random(batch, *out, groups * group_channels)

    def run(call: Callable[..., Tensor], like: Tensor) -> dict[str, Tensor]:
        offset, mask = joint.to(like).split([groups * points * 2, groups * points], dim=-1)
        inputs = [
            tensor.detach().requires_grad_(backward) for tensor in (image.to(like), offset, mask)
        ]
        output = call(*inputs, window, groups, offset_scale, remove_center, mask_is_logits)
        results = {'output': output}
        if backward:
            names = ('gradient of input', 'gradient of offset', 'gradient of mask')
            gradients = torch.autograd.grad(output, inputs, grad_output.to(like))
            results.update(zip(names, gradients, strict=True))
        return {name: tensor.detach().to('cpu', torch.float64) for name, tensor in results.items()}

    expected = run(dcnv3_reference, torch.empty(0, dtype=torch.float64, device='cpu'))
    for name, result in run(call, torch.empty(0, dtype=dtype, device=device)).items():
        truth = expected[name]
        error = float((result - truth).abs().max() / truth.abs().max())
        if not error <= _TOLERANCES[dtype]:
            return (
                f'its self-check failed: in {dtype} the {name} of an image of {height}x{width} '
                f'pixels differs from the reference backend by {error:.1e} of the largest value '
                f'({_TOLERANCES[dtype]:.0e} allowed)'
            )
    return None
