"""torch.compile, block by block."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..backbones.internimage import Block
from ..compat import allow_recompilations

# Programs of all blocks together; with more, the blocks run as without compilation.
_PROGRAMS = 64


def compile_blocks(model: nn.Module, **settings: Any) -> None:
    """Compile each block of a backbone by itself, in place. Names of weights stay.

    All blocks of a stage run one program. Each new size of images needs others.

    Args:
        model: A backbone, or what contains it.
        **settings: Of :func:`torch.compile`.
    """
    allow_recompilations(_PROGRAMS)
    for module in model.modules():
        if isinstance(module, Block):
            if module.drop_path.rate > 0:
                keep = torch.tensor(1 - module.drop_path.rate, device=get_device())
                module.drop_path = _DropPath(keep)  # type: ignore[assignment]
            module.compile(**{'dynamic': False, **settings})


@HOOKS.register_module()
class CompileBlocksHook(Hook):
    """Compiles the blocks of the backbone for training, see :func:`compile_blocks`.

    Args:
        **settings: Of :func:`torch.compile`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def before_train(self, runner: Runner) -> None:
        compile_blocks(runner.model, **self.settings)

    def before_val(self, runner: Runner) -> None:
        torch.compiler.set_stance('force_eager')

    def after_val(self, runner: Runner) -> None:
        torch.compiler.set_stance('default')


class _DropPath(nn.Module):
    """Stochastic depth with the probability in a tensor: a number would be part of the program."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        kept = torch.rand(shape, dtype=self.keep.dtype, device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)
