"""CB-InternImage: two InternImage backbones, the first of which feeds the second.

Composite connection after CBNetV2 (arXiv:2107.00420), as in the official release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internimage_mm.checkpoint import (
    initialize_strictly,
    load_backbone,
    named_checkpoints,
    watch_models_with,
)
from internimage_mm.engine import MODELS, BaseModule
from ops_dcnv3 import fast_cpu

from .internimage import InternImage, pretrained_init_cfg
from .settings import NUM_STAGES, unless_arch

STRIDE = 32
"""Height and width of the images must be multiples of it."""


class LeadInternImage(InternImage):
    """The second backbone: no stem of its own, and a scale for what it is fed at each stage."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.patch_embed = None  # type: ignore[assignment]
        for i in range(NUM_STAGES):
            self.register_parameter(f'gamma{i}', nn.Parameter(torch.zeros(self.channels * 2**i)))

    def forward(  # type: ignore[override]
        self, x: Tensor, feedback: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run the stages on the stem's output.

        Args:
            x: Output of the stem, (N, H, W, C).
            feedback: What is added before each stage, scaled, (N, H / 2**i, W / 2**i, C * 2**i).

        Returns:
            The features of ``out_indices``, NCHW.
        """
        features = []
        for i, stage in enumerate(self.levels):
            # The official code multiplies with the scale rounded to float16. Without the rounding
            # the features of an official checkpoint move by up to 1e-3.
            scale = self.get_parameter(f'gamma{i}').half()
            x, feature = stage(x + (scale * feedback[i]).to(x.dtype))
            if i in self.out_indices:
                features.append(fast_cpu.channels_first(feature))
        return tuple(features)


@MODELS.register_module()
class CBInternImage(BaseModule):
    """Two InternImage backbones: the features of the assisting one are fed to the lead one.

    Both see the output of one stem. Before its stage ``i``, the lead backbone gets the sum of the
    assisting backbone's features of the stages ``i`` to 3, each brought to the channels of stage
    ``i`` (1x1 convolution) and to its size (nearest neighbour), times a scale per channel that
    starts at 0.

    Maps (N, 3, H, W), H and W multiples of 32, to a pair of tuples of NCHW features: those of the
    assisting and those of the lead backbone. State-dict keys are the official ones.

    Args:
        arch: As of :class:`InternImage`.
        out_indices: Stages to return, of the assisting and of the lead backbone. If the first has
            one more than the second, its first stage is not returned (the official configs give
            ``[(0, 1, 2, 3), (1, 2, 3)]``, where stage 0 serves the feedback only). Default
            ``[(1, 2, 3), (1, 2, 3)]``.
        cb_zero_init: Accepted and without effect, as in the official code: the scales start at 0.
        cb_del_stages: 1, as in all official configs.
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` takes the checkpoint of one
            InternImage for both backbones, or that of a whole CB-InternImage.
        pretrained: The same as a string, as configs before mmengine have it.

    All other arguments are those of :class:`InternImage`, for both backbones alike.

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
        core_op: str = 'DCNv3',
        in_channels: int = 3,
        channels: int = unless_arch(96),
        depths: Sequence[int] = unless_arch([3, 4, 18, 5]),
        groups: Sequence[int] = unless_arch([3, 6, 12, 24]),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        drop_path_type: str = 'linear',
        act_layer: str = unless_arch('GELU'),
        norm_layer: str = unless_arch('LN'),
        layer_scale: float | None = unless_arch(None),
        offset_scale: float = unless_arch(1.0),
        post_norm: bool = unless_arch(False),
        res_post_norm: bool = unless_arch(False),
        dw_kernel_size: int | None = unless_arch(None),
        level2_post_norm: bool = unless_arch(False),
        level2_post_norm_block_ids: Sequence[int] | None = unless_arch(None),
        center_feature_scale: bool = unless_arch(False),
        remove_center: bool = False,
        use_dcn_v4_op: bool = False,
        with_cp: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(init_cfg=pretrained_init_cfg(init_cfg, pretrained))
        watch_models_with(self)
        if not isinstance(out_indices, (list, tuple)) or [
            isinstance(stages, (list, tuple)) for stages in out_indices
        ] != [True, True]:
            raise ValueError(
                'out_indices of CBInternImage must be two sequences of stages, of the assisting '
                f'and of the lead backbone, got {out_indices}'
            )
        if cb_del_stages != 1:
            raise ValueError(f'cb_del_stages must be 1, got {cb_del_stages}')
        settings: dict[str, Any] = dict(
            arch=arch,
            core_op=core_op,
            in_channels=in_channels,
            channels=channels,
            depths=depths,
            groups=groups,
            mlp_ratio=mlp_ratio,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            drop_path_type=drop_path_type,
            act_layer=act_layer,
            norm_layer=norm_layer,
            layer_scale=layer_scale,
            offset_scale=offset_scale,
            post_norm=post_norm,
            res_post_norm=res_post_norm,
            dw_kernel_size=dw_kernel_size,
            level2_post_norm=level2_post_norm,
            level2_post_norm_block_ids=level2_post_norm_block_ids,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
            use_dcn_v4_op=use_dcn_v4_op,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
        )
        assisting = InternImage(out_indices=out_indices[0], **settings)
        lead = LeadInternImage(out_indices=out_indices[1], **settings)
        self.cb_modules = nn.ModuleList([assisting, lead])
        self.skipped = int(len(out_indices[0]) == len(out_indices[1]) + 1)
        widths = [assisting.channels * 2**i for i in range(NUM_STAGES)]
        self.cb_linears = nn.ModuleList(
            nn.ModuleList(
                nn.Identity() if j == i else nn.Conv2d(widths[j], widths[i], 1)
                for j in range(i, NUM_STAGES)
            )
            for i in range(NUM_STAGES)
        )

    def init_weights(self) -> None:
        """Do what ``init_cfg`` says; without it the weights stay as the constructor made them.

        Raises:
            CheckpointError: A checkpoint fits neither one InternImage nor this composite one.
        """
        if self.is_init or not named_checkpoints(self.init_cfg):
            super().init_weights()
        else:
            initialize_strictly(self, self._load)

    def _load(self, state_dict: dict[str, Tensor], path: str, prefix: str | None) -> None:
        if any('cb_modules.' in name for name in state_dict):
            load_backbone(self, state_dict, path, prefix)
        else:
            assisting, lead = self.cb_modules
            load_backbone(assisting, state_dict, path, prefix)
            lead.levels.load_state_dict(assisting.levels.state_dict())

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
        for stage in assisting.levels:
            x, feature = stage(x)
            features.append(fast_cpu.channels_first(feature))
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
