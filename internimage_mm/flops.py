"""Multiply-adds of a model by the counting rules behind the official FLOPs columns.

The official ``get_flops.py`` scripts hook modules by mmcv 1.x's rules and add the deformable op by
a formula. Here the same is counted on the meta device, so that the largest model needs no memory:

* convolutions, transposed convolutions and linear layers: one for each multiplication with a
  weight, and (convolutions only) one for each addition of a bias;
* norms: one per input element, two if they have weights; SyncBN: none;
* pooling: one per input element; ReLU and upsampling modules: one per output element;
* DCNv3: 5 for each channel of each of the sampling points of each pixel;
* everything else (GELU, softmax, attention products, functional calls): none.

Detectors with regions of interest are counted with 1000 boxes and 100 masks. Auxiliary heads, which
only train, are not counted.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ops_dcnv3.modules import DCNv3

from .without_values import run_without_values

_NUM_BOXES, _NUM_MASKS = 1000, 100


@torch.no_grad()
def count_flops(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """Count the multiply-adds of one image.

    Args:
        model: A detector, segmentor or classifier on the meta device.
        height: Of the image in pixels.
        width: Likewise.

    Returns:
        The counts of the model's parts (``backbone``, ``neck``, ...) and their sum as ``total``.

    Raises:
        ValueError: The model is none of those that the release publishes FLOPs of.
    """
    counts: dict[str, int] = defaultdict(int)
    handles = []
    for name, module in model.named_modules():
        rule = next((rule for types, rule in _RULES if isinstance(module, types)), None)
        if rule is not None:
            hook = functools.partial(_add, counts, name.split('.')[0], rule)
            handles.append(module.register_forward_hook(hook))
    if hasattr(model, 'encoder'):
        raise ValueError(
            f'{type(model).__name__} cannot be counted: the release publishes no FLOPs of DINO'
        )
    try:
        run_without_values(
            model, torch.empty(1, 3, height, width, device='meta'), _NUM_BOXES, _NUM_MASKS
        )
    finally:
        for handle in handles:
            handle.remove()
    return {**counts, 'total': sum(counts.values())}


def _add(counts: dict[str, int], part: str, rule: Callable, module, inputs, output) -> None:
    counts[part] += rule(module, inputs[0], output)


def _conv(module: nn.Conv2d, x: Tensor, output: Tensor) -> int:
    positions = output[:, 0].numel()
    weights = module.weight.numel() + (0 if module.bias is None else module.out_channels)
    return positions * weights


def _deconv(module: nn.ConvTranspose2d, x: Tensor, output: Tensor) -> int:
    bias = 0 if module.bias is None else output.numel()
    return x[:, 0].numel() * module.weight.numel() + bias


def _linear(module: nn.Linear, x: Tensor, output: Tensor) -> int:
    return x.numel() * module.out_features


def _norm(module: Any, x: Tensor, output: Tensor) -> int:
    return x.numel() * (1 if module.weight is None else 2)


def _dcn(module: DCNv3, x: Tensor, output: Tensor) -> int:
    points = math.prod(module.kernel_size) - int(module.remove_center)
    return 5 * points * output.numel()


_RULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[..., int]], ...] = (
    ((nn.ConvTranspose2d,), _deconv),
    ((nn.Conv2d,), _conv),
    ((nn.Linear,), _linear),
    ((nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm), _norm),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), lambda module, x, output: x.numel()),
    ((nn.ReLU, nn.Upsample), lambda module, x, output: output.numel()),
    ((DCNv3,), _dcn),
)
