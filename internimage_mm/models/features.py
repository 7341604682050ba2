"""Features of a backbone: one per stage, or the outputs of modules by their names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import InternImage
from ..backbones.settings import NUM_STAGES, integers

FIRST_STRIDE = 4


class FeatureInfo:
    """What the features of the chosen stages are, in the interface of timm's ``FeatureInfo``.

    Args:
        info: For each stage ``num_chs``, ``reduction`` (its stride) and ``module`` (its name).
        out_indices: The stages that are returned.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = list(info)
        self.out_indices = tuple(out_indices)

    def channels(self) -> list[int]:
        """Channels of each feature that is returned."""
        return self.get('num_chs')

    def reduction(self) -> list[int]:
        """Stride of each."""
        return self.get('reduction')

    def module_name(self) -> list[str]:
        """Name of the module that puts out each."""
        return self.get('module')

    def get(self, key: str) -> list[Any]:
        """One entry of ``info`` for each."""
        return [self.info[i][key] for i in self.out_indices]

    def __getitem__(self, stage: int) -> dict[str, Any]:
        return self.info[stage]

    def __len__(self) -> int:
        return len(self.info)


class FeatureExtractor(nn.Module):
    """A backbone without the stages after the last one that is asked for.

    Maps images (N, in_chans, H, W) to a list of NCHW features.

    Args:
        backbone: Is cut, so use it no longer.
        out_indices: Stages from 0 to 3; a number n means the last n. Negative ones count from the
            end.

    Attributes:
        feature_info: Channels and strides of the features (:class:`FeatureInfo`).
    """

    def __init__(self, backbone: InternImage, out_indices: int | Sequence[int]) -> None:
        super().__init__()
        stages = chosen_stages(out_indices)
        self.feature_info = FeatureInfo(feature_info(backbone), stages)
        cut(backbone, stages[-1])
        self.backbone = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.backbone.features(x, self.feature_info.out_indices)


def feature_info(backbone: InternImage) -> list[dict[str, Any]]:
    """Channels, stride and name of every stage of a ``model.backbone``."""
    return [
        dict(
            num_chs=backbone.channels * 2**i,
            reduction=FIRST_STRIDE * 2**i,
            module=f'backbone.levels.{i}',
        )
        for i in range(NUM_STAGES)
    ]


def chosen_stages(indices: int | Sequence[int] | None) -> list[int]:
    """The stages that ``indices`` of timm's functions stand for, in ascending order.

    Args:
        indices: A number n: the last n stages. None: all. A sequence: these, negative ones counted
            from the end.

    Raises:
        TypeError: Neither of these.
        ValueError: There is no such stage, or none is chosen.
    """
    if indices is None:
        indices = NUM_STAGES
    if isinstance(indices, int):
        stages = list(range(NUM_STAGES - indices, NUM_STAGES))
    else:
        numbers = integers('out_indices', indices)
        stages = sorted({i + NUM_STAGES if i < 0 else i for i in numbers})
    if not stages or stages[0] < 0 or stages[-1] >= NUM_STAGES:
        raise ValueError(
            f'out_indices must be stages from 0 to {NUM_STAGES - 1}, or how many of the last ones, '
            f'got {indices}'
        )
    return stages


def cut(backbone: InternImage, last: int) -> None:
    """Remove what a backbone has after the feature of the stage ``last``."""
    backbone.levels = backbone.levels[: last + 1]
    last_stage: Any = backbone.levels[-1]
    last_stage.downsample = None


def extract_features(
    model: nn.Module, images: Tensor, names: Iterable[str]
) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """Run a model and return what the named modules have put out, without gradients.

    Args:
        model: Any module. Its mode (training or not) is left as it is.
        images: Its input, (N, C, H, W).
        names: Names as ``model.named_modules()`` has them, such as
            ``'backbone.levels.2.blocks.17'``. The names of the official release, without
            ``backbone.`` or ``neck.`` in front, do as well.

    Returns:
        For each name, the output of the module: within the stages (N, H, W, C), of a stage its
        input to the next one and its feature. If a module runs several times, the last output.

    Raises:
        ValueError: There is no such module (the message names similar ones), or it did not run.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, Any] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = output

    with ExitStack() as hooks, torch.no_grad():
        names = list(names)
        for name in names:
            full = next((f for f in (name, f'backbone.{name}', f'neck.{name}') if f in modules), '')
            if not full:
                similar = ', '.join(difflib.get_close_matches(name, modules)) or 'no similar ones'
                raise ValueError(f'the model has no module {name!r}; it has {similar}')
            hooks.enter_context(modules[full].register_forward_hook(partial(keep, name)))
        model(images)
    if missing := [name for name in names if name not in outputs]:
        raise ValueError(f'the model did not run {", ".join(missing)}')
    return {name: outputs[name] for name in names}
