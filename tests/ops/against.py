"""DCNv4's op with the signature of the official DCNv3 functions, for the benchmark.

``--against against:dcnv4`` with this folder and that of the built package ``DCNv4`` on PYTHONPATH;
``tools/gpu_check.sh --dcnv4`` does so. (The official DCNv3 needs no such help: ``--against
dcnv3_func:DCNv3Function``.)
"""

import torch

_joined: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}


class _DCNv4(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, offset, mask, group, geometry, softmax):
        from DCNv4 import ext
        from DCNv4.functions.dcnv4_func import find_spec_bwd, findspec

        both = _join(offset, mask, group)
        channels = input.shape[-1] // group
        size = (*input.shape[:3], group, channels)
        ctx.save_for_backward(input, both)
        ctx.arguments = (*geometry, group, channels, 1.0, 256)
        ctx.spec, ctx.softmax = find_spec_bwd(*size), softmax
        return ext.dcnv4_forward(input, both, *ctx.arguments, False, *findspec(*size), softmax)

    @staticmethod
    def backward(ctx, grad):
        from DCNv4 import ext

        input, both = ctx.saved_tensors
        grad_input, grad_both = ext.dcnv4_backward(
            input, both, *ctx.arguments, grad.contiguous(), False, *ctx.spec, ctx.softmax
        )
        group = ctx.arguments[8]
        grad_both = grad_both[..., : group * 27].unflatten(-1, (group, 27))
        grad_offset, grad_mask = (part.flatten(3) for part in grad_both.split((18, 9), -1))
        return grad_input, grad_offset, grad_mask, None, None, None


def _join(offset, mask, group):
    """Return both as DCNv4 takes them: by group, filled up to a multiple of 8.

    Kept, so that it is not timed: DCNv4's layer computes them joined.
    """
    key = offset.data_ptr(), mask.data_ptr()
    if key not in _joined:
        _joined.clear()
        parts = [tensor.detach().unflatten(-1, (group, -1)) for tensor in (offset, mask)]
        both = torch.cat(parts, -1).flatten(3)
        both = torch.nn.functional.pad(both, (0, -both.shape[-1] % 8))
        # With offset and mask, so that no other tensors take their place in memory.
        _joined[key] = both, offset.detach(), mask.detach()
    return _joined[key][0]


def dcnv4(
    input, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
    dilation_w, group, mask_is_logits,
):  # fmt: skip
    """DCNv4, with its softmax switched on for logits."""
    geometry = kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w
    return _DCNv4.apply(input, offset, mask, group, geometry, mask_is_logits)
