"""CB-InternImage: two InternImage backbones, the first of which feeds the second.

Composite connection after CBNetV2 (arXiv:2107.00420), as in the official release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from internimage_mm.checkpoint import (
    extract_state_dict,
    load_backbone_checkpoint,
    read_checkpoint,
)

from .internimage import NUM_LEVELS, InternImage

STRIDE = 32
"""Height and width of the images must be multiples of it."""


class LeadInternImage(InternImage):
    """The second backbone: no stem of its own, and a scale for what it is fed at each level."""

    def __init__(self, arch: str | None = None, **settings) -> None:
        super().__init__(arch, **settings)
        del self.patch_embed
        for i in range(NUM_LEVELS):
            self.register_parameter(f'gamma{i}', nn.Parameter(torch.zeros(self.channels * 2**i)))

    def forward(  # type: ignore[override]
        self, x: Tensor, feedback: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run the levels on the stem's output.

        Args:
            x: Output of the stem, (N, H, W, C).
            feedback: What is added before each level, scaled, (N, H / 2**i, W / 2**i, C * 2**i).

        Returns:
            The features of ``out_indices``, NCHW.
        """
        features = []
        for i, level in enumerate(self.levels):
            # The official code multiplies with the scale rounded to float16. Without the rounding
            # the features of an official checkpoint move by up to 1e-3.
            scale = self.get_parameter(f'gamma{i}').half()
            x, feature = level(x + (scale * feedback[i]).to(x.dtype))
            if i in self.out_indices:
                features.append(feature.permute(0, 3, 1, 2).contiguous())
        return tuple(features)


@MODELS.register_module()
class CBInternImage(BaseModule):
    """Two InternImage backbones: the features of the assisting one are fed to the lead one.

    Both see the output of one stem. Before its level ``i``, the lead backbone gets the sum of the
    assisting backbone's features of the levels ``i`` to 3, each brought to the channels of level
    ``i`` (1x1 convolution) and to its size (nearest neighbour), times a scale per channel that
    starts at 0.

    Maps (N, 3, H, W), H and W multiples of 32, to a pair of tuples of NCHW features: those of the
    assisting and those of the lead backbone. State-dict keys are the official ones.

    Args:
        arch: As of :class:`InternImage`.
        out_indices: Levels to return, of the assisting and of the lead backbone. If the first has
            one more than the second, its first level is not returned (the official configs give
            ``[(0, 1, 2, 3), (1, 2, 3)]``, where level 0 serves the feedback only). Default
            ``[(1, 2, 3), (1, 2, 3)]``.
        cb_zero_init: Accepted and without effect, as in the official code: the scales start at 0.
        cb_del_stages: 1, as in all official configs.
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` takes the checkpoint of one
            InternImage for both backbones, or that of a whole CB-InternImage.
        **settings: Those of :class:`InternImage`, for both alike; ``channels`` defaults to 96 when
            there is no ``arch``.

    Raises:
        TypeError: Unknown argument.
        ValueError: Settings that do not fit one another; in :meth:`forward`, an image size that is
            not a multiple of 32.
    """

    cb_modules: Any  # ModuleList; what it holds is not expressible
    cb_linears: Any

    def __init__(
        self,
        arch: str | None = None,
        *,
        out_indices: Sequence[Sequence[int]] = ((1, 2, 3), (1, 2, 3)),
        cb_zero_init: bool = True,
        cb_del_stages: int = 1,
        init_cfg: dict | None = None,
        **settings,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not isinstance(out_indices, (list, tuple)) or [
            isinstance(levels, (list, tuple)) for levels in out_indices
        ] != [True, True]:
            raise ValueError(
                'out_indices of CBInternImage must be two sequences of levels, of the assisting '
                f'and of the lead backbone, got {out_indices}'
            )
        if cb_del_stages != 1:
            raise ValueError(f'cb_del_stages must be 1, got {cb_del_stages}')
        if arch is None:
            settings.setdefault('channels', 96)
        assisting = InternImage(arch, out_indices=out_indices[0], **settings)
        lead = LeadInternImage(arch, out_indices=out_indices[1], **settings)
        self.cb_modules = nn.ModuleList([assisting, lead])
        self.skipped = int(len(out_indices[0]) == len(out_indices[1]) + 1)
        channels = [assisting.channels * 2**i for i in range(NUM_LEVELS)]
        self.cb_linears = nn.ModuleList(
            nn.ModuleList(
                nn.Identity() if j == i else nn.Conv2d(channels[j], channels[i], 1)
                for j in range(i, NUM_LEVELS)
            )
            for i in range(NUM_LEVELS)
        )

    def init_weights(self) -> None:
        """Load ``init_cfg['checkpoint']`` if there is one.

        Raises:
            ValueError: The checkpoint fits neither one InternImage nor this composite one.
        """
        if not (isinstance(self.init_cfg, dict) and 'checkpoint' in self.init_cfg):
            super().init_weights()
            return
        path, prefix = self.init_cfg['checkpoint'], self.init_cfg.get('prefix')
        if any('cb_modules.' in name for name in extract_state_dict(read_checkpoint(path))):
            load_backbone_checkpoint(self, path, prefix=prefix)
        else:
            assisting, lead = self.cb_modules
            load_backbone_checkpoint(assisting, path, prefix=prefix)
            lead.levels.load_state_dict(assisting.levels.state_dict())
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Map images (N, 3, H, W) to the features of the assisting and of the lead backbone."""
        if x.shape[-2] % STRIDE or x.shape[-1] % STRIDE:
            raise ValueError(
                f'CBInternImage needs images whose height and width are multiples of {STRIDE}, got '
                f'{x.shape[-2]}x{x.shape[-1]}; set pad_size_divisor={STRIDE} in data_preprocessor'
            )
        assisting, lead = self.cb_modules
        stem = x = assisting.pos_drop(assisting.patch_embed(x))
        features = []
        for level in assisting.levels:
            x, feature = level(x)
            features.append(feature.permute(0, 3, 1, 2).contiguous())
        outputs = tuple(features[i] for i in assisting.out_indices)
        return outputs[self.skipped :], lead(stem, self._feedback(features))

    def _feedback(self, features: Sequence[Tensor]) -> list[Tensor]:
        feedback = []
        for i, layers in enumerate(self.cb_linears):
            size = features[i].shape[-2:]
            fed = [
                F.interpolate(layer(feature), size=size, mode='nearest')
                for layer, feature in zip(layers, features[i:], strict=True)
            ]
            feedback.append(sum(fed[1:], fed[0]).permute(0, 2, 3, 1))
        return feedback
