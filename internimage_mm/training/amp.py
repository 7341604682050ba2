"""Automatic mixed precision in bfloat16 where the device has it, else in float16."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.utils import apply_to
from torch import Tensor, nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper`` with a forward under bfloat16 autocast, on a CPU too.

    The range of bfloat16 is that of float32, so losses are not scaled. Takes the arguments of
    ``OptimWrapper``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _keep_mmcv_in_float32(get_device())

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield


def enable_amp(optim_wrapper: dict) -> None:
    """Set up mixed precision: bfloat16 if this device has it, else float16 with loss scaling.

    Args:
        optim_wrapper: Of a config, which is changed.
    """
    device = get_device()
    if device == 'cpu' or (
        device == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            optim_wrapper.pop(key, None)
        optim_wrapper['type'] = BFloat16OptimWrapper.__name__
    else:
        optim_wrapper['type'] = 'AmpOptimWrapper'
        optim_wrapper.setdefault('loss_scale', 'dynamic')


def keep_boxes_in_float32(model: nn.Module) -> None:
    """Let heads with anchors return float32, and extractors of regions take it.

    mmdet makes the anchors in the type of the scores, and bfloat16 is exact to whole pixels up to
    256 only.
    """
    for module in model.modules():
        if hasattr(module, 'prior_generator'):
            module.register_forward_hook(lambda module, inputs, output: _to_float32(output))
        if hasattr(module, 'roi_layers'):
            module.register_forward_pre_hook(lambda module, inputs: _to_float32(inputs))


def _to_float32(data: Any) -> Any:
    return apply_to(data, lambda x: isinstance(x, Tensor), Tensor.float)


@functools.cache
def _keep_mmcv_in_float32(device: str) -> None:
    """Under autocast, mmcv's operators get float32: most have no kernel for bfloat16."""
    try:
        from mmcv.ops.focal_loss import SigmoidFocalLossFunction
        from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
    except ImportError:  # mmcv-lite, whose models have none of them
        return
    for function in (SigmoidFocalLossFunction, MultiScaleDeformableAttnFunction):
        forward = torch.amp.custom_fwd(
            function.forward, device_type=device, cast_inputs=torch.float32
        )
        backward = torch.amp.custom_bwd(function.backward, device_type=device)
        function.forward, function.backward = staticmethod(forward), staticmethod(backward)
