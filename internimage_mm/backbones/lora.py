"""InternImage with trainable low-rank updates of its linear layers (LoRA, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internimage_mm.engine import MODELS

from .internimage import InternImage

TARGETS = ('input_proj', 'output_proj', 'fc1', 'fc2')
"""The linear layers of a block, but for those of offsets and masks."""


class LoRALinear(nn.Linear):
    """``x @ (W + alpha / rank * B @ A).T + b``, with A (rank, in) and B (out, rank) to be trained.

    A starts as the weights of a linear layer do, B at zero.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, drop_rate: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = alpha / rank
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(self.drop(x), self.lora_A), self.lora_B)
        return super().forward(x) + self.scale * update

    def merged(self) -> nn.Linear:
        """A linear layer with the weights W + alpha / rank * B @ A."""
        layer = nn.Linear(self.in_features, self.out_features, device='meta')
        update = self.scale * self.lora_B.double() @ self.lora_A.double()
        weight = (self.weight.double() + update).to(self.weight.dtype)
        layer.weight, layer.bias = nn.Parameter(weight), self.bias
        return layer


@MODELS.register_module()
class LoRAInternImage(InternImage):
    """An InternImage whose weights stay as they are, with low-rank updates that are trained.

    The state dict is that of :class:`InternImage`, and the updates as ``*.lora_A``, ``*.lora_B``.
    These may be missing in what is loaded, and then are without effect: any checkpoint of an
    InternImage can be fine-tuned. :meth:`merge` or ``tools/merge_lora.py`` makes one of both.

    Args:
        arch: As of :class:`InternImage`, like all arguments that are not listed here.
        rank: Rank of the updates.
        alpha: They are multiplied with ``alpha / rank``.
        lora_drop_rate: Dropout before them.
        targets: Last parts of the names of the layers that get one.

    Raises:
        ValueError: ``rank`` is not positive, or no layer has such a name.
    """

    def __init__(
        self,
        arch: str | None = None,
        *,
        rank: int = 8,
        alpha: float = 8.0,
        lora_drop_rate: float = 0.0,
        targets: Sequence[str] = TARGETS,
        **settings: Any,
    ) -> None:
        super().__init__(arch, **settings)
        if rank < 1:
            raise ValueError(f'rank must be positive, got {rank}')
        self.requires_grad_(False)
        for name, layer in list(self.named_modules()):
            if isinstance(layer, nn.Linear) and name.rpartition('.')[2] in targets:
                self.set_submodule(name, LoRALinear(layer, rank, alpha, lora_drop_rate))
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(f'targets must name linear layers of the blocks, got {targets}')
        self._freeze()

    def merge(self) -> None:
        """Add the updates to the weights; layers and state dict then are those of InternImage."""
        for name, layer in list(self.named_modules()):
            if isinstance(layer, LoRALinear):
                self.set_submodule(name, layer.merged())
