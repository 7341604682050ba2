"""What one training step needs in memory, found on tensors without values."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from ops_dcnv3.fast_cpu import use_fast_cpu

from ..compat import AllocationMode, FakeTensorMode
from ..without_values import run_without_values
from .model import build_model
from .sharding import is_unit, parameters_without_memory


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step in one process."""

    parameters: int
    trained: int
    """Those of the parameters that have gradients."""
    states: int
    """Optimizer state."""
    activations: int
    """Peak of all else, gradients of parameters excepted."""
    step_peak: int
    """Peak of activations and gradients together."""
    gathered: int
    """Of a sharded model, the most parameters that are whole at a time."""

    def peak(self, processes: int, shard: bool) -> int:
        """The peak of one of several processes."""
        if not shard:
            buckets = self.trained if processes > 1 else 0  # copies of the gradients to send
            return self.parameters + self.states + buckets + self.step_peak
        divided = self.parameters + self.trained + self.states
        return divided // processes + 2 * self.gathered + self.activations


def measure_step(
    cfg: Config, batch: int, height: int, width: int, amp: bool, recompute: bool
) -> StepMemory:
    """Run one training step of a config's model on tensors without values.

    Losses that depend on values (matching, sampling) are left out: the step ends with the outputs
    of the heads, in segmentors with their cross entropy. Detectors with regions of interest get
    as many as their samplers draw.

    Args:
        cfg: The whole config.
        batch: Images of this process.
        height: Of the images in pixels.
        width: Likewise.
        amp: With ``--amp``, in bfloat16.
        recompute: With ``with_cp`` of the backbone.

    Returns:
        What it needs; the optimizer is Adam, or SGD with momentum.

    Raises:
        ValueError: A model that is none of the release's kinds.
        RuntimeError: This PyTorch has no fake tensors.
    """
    if FakeTensorMode is None or AllocationMode is None:
        raise RuntimeError(f'PyTorch {torch.__version__} has no fake tensors where they are known')
    cfg = cfg.copy()
    cfg.model = {**cfg.model, 'backbone': {**cfg.model.backbone, 'with_cp': recompute}}
    with parameters_without_memory():
        model = build_model(cfg).train()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(use_fast_cpu(False))
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(fake, parameter.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
            if isinstance(module, nn.SyncBatchNorm):  # the images of the others are not here
                module.eval()
        images = torch.empty(batch, 3, height, width)
        live = _Live([images, *model.parameters(), *model.buffers()])
        stack.enter_context(AllocationMode(live.add))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(live.take_gradient)
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            loss = _loss(model, images)
        loss.backward()
    sizes = {name: _bytes(p) for name, p in model.named_parameters()}
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    copies = 1 if cfg.optim_wrapper.optimizer.type == 'SGD' else 2
    return StepMemory(
        parameters=sum(sizes.values()),
        trained=trained,
        states=copies * trained,
        activations=live.peak_activations,
        step_peak=live.peak,
        gathered=_gathered(model),
    )


class _Live:
    """Bytes of the storages that are alive, without those that were there before."""

    def __init__(self, before: list[Tensor]) -> None:
        self.now = self.gradients = self.peak = self.peak_activations = 0
        self._before = [tensor.untyped_storage() for tensor in before]  # operators return views
        self._seen = {id(storage) for storage in self._before}

    def add(self, tensor: Tensor, operator: Any) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(id(storage))
        self.now += size
        # The backward pass adds a gradient to another in place, but not to a fake one: it is gone
        # by the next allocation.
        if operator is not torch.ops.aten.add.Tensor or torch.is_grad_enabled():
            self.peak = max(self.peak, self.now)
            self.peak_activations = max(self.peak_activations, self.now - self.gradients)
        weakref.finalize(storage, self._remove, id(storage), size)

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def take_gradient(self, parameter: Tensor) -> None:
        self.gradients += _bytes(parameter)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _gathered(model: nn.Module) -> int:
    """The two largest parts, of which one is gathered ahead, and what belongs to none."""
    units = [module for name, module in model.named_modules() if is_unit(name, module)]
    inner = {id(child) for unit in units for child in unit.modules() if child is not unit}
    sizes = {}
    claimed: set[int] = set()
    for unit in sorted(units, key=lambda module: id(module) not in inner):  # parts before wholes
        own = [p for p in unit.parameters() if id(p) not in claimed]
        claimed |= {id(p) for p in own}
        sizes[id(unit)] = sum(map(_bytes, own))
    root = sum(_bytes(p) for p in model.parameters() if id(p) not in claimed)
    return root + sum(sorted(sizes.values())[-2:])


def _loss(model: Any, images: Tensor) -> Tensor:
    boxes = masks = 0
    if hasattr(model, 'roi_head'):
        stages = model.train_cfg.rcnn
        sampler = (stages[0] if isinstance(stages, list) else stages).sampler
        boxes = len(images) * sampler.num
        masks = int(boxes * sampler.pos_fraction)
    outputs = list(_tensors(run_without_values(model, images, boxes, masks)))
    if hasattr(model, 'decode_head') and not hasattr(model.decode_head, 'pixel_decoder'):
        size = images.shape[-2:]
        labels = images.new_zeros((len(images), *size), dtype=torch.long)
        losses = [cross_entropy(interpolate(t, size, mode='bilinear'), labels) for t in outputs]
    else:
        losses = [tensor.float().mean() for tensor in outputs]
    return torch.stack(losses).sum()


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)
