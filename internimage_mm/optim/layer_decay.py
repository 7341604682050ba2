"""Layer-wise learning-rate decay, as the official InternImage release trains with."""

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from .base import LayerWiseConstructor

# Mask2Former's query-side parameters: the segmentation release trains them at the stem's rate.
_SEG_LAYER_0 = tuple(
    f'decode_head.{name}'
    for name in ('mask_embed', 'cls_embed', 'level_embed', 'query_embed', 'query_feat')
)


def _find_backbones(model: nn.Module) -> dict[str, list[int]]:
    """Name (empty for ``model`` itself) -> blocks per stage of every InternImage in ``model``."""
    return {
        name: [len(list(level.blocks.children())) for level in module.levels.children()]
        for name, module in model.named_modules()
        if {'patch_embed', 'levels'} <= dict(module.named_children()).keys()
    }


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CustomLayerDecayOptimizerConstructor(LayerWiseConstructor):
    """Optimizer constructor with layer-wise learning-rate decay for InternImage models.

    Every trainable parameter gets a layer id in ``0 .. num_layers + 1``, ``num_layers`` being the
    number of blocks of the model's InternImage. Its learning rate is
    ``lr * layer_decay_rate ** (num_layers + 1 - id)``:

    ==========================================  ==================================================
    parameter                                   layer id (``d``: blocks of each stage)
    ==========================================  ==================================================
    backbone ``patch_embed``                    0
    backbone ``levels.i.blocks.j``              ``1 + j + sum(d[:i])``
    backbone ``levels.2.post_norms.k``          ``1 + k + d[0] + d[1]``, ``k`` counted in its list
    backbone ``levels.i.downsample``, ``.norm`` ``1 + sum(d[:i + 1])``; last level:
                                                ``1 + sum(d[:3])``
    multi-scale level embedding of a DETR-like  0 (``level_embeds`` officially, ``level_embed`` in
    detector                                    mmdet 3.x)
    ``decode_head.{mask_embed, cls_embed,       0, in a segmentor only
    level_embed, query_embed, query_feat}``
    everything else                             ``num_layers + 1``, hence the full learning rate
    ==========================================  ==================================================

    One-dimensional parameters, ``*.bias`` and names containing ``norm``, ``relative_position`` or
    ``sampling_offsets`` are not decayed (weight decay 0); all others get the weight decay of the
    optimizer. There is one parameter group per layer id, weight decay yes or no, and special
    learning-rate scale (``offset_lr_scale`` or ``dino_head``), with the keys ``params``, ``lr``,
    ``lr_scale``, ``weight_decay``, ``group_name`` and ``param_names``. A frozen parameter
    (``requires_grad=False``) is in no group, a shared one in one group, under its first name.

    The model tells which of the two official variants applies: a model with a ``decode_head``
    is a segmentor. The backbone is found by its structure (children ``patch_embed`` and
    ``levels``), so it may have any name, such as ``img_backbone``. The weights of a
    CB-InternImage get the full learning rate, as they do in the official release (only in a
    segmentor does ``cb_modules.0.patch_embed`` get id 0). A model without an InternImage needs
    ``num_layers``; it is trained with the rest of the rules, and one warning.

    The rules and constants are those of the official release
    (https://github.com/OpenGVLab/InternImage, ``CustomLayerDecayOptimizerConstructor`` of its
    detection and segmentation trees).

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper. ``optimizer`` must give ``lr``
            and ``weight_decay``.
        paramwise_cfg (dict): The options, under their official names:

            - ``layer_decay_rate`` (float): Learning-rate factor from one layer to the layer
              before it, in (0, 1]. Required.
            - ``num_layers`` (int), ``depths`` (Sequence[int]): Number of blocks of the backbone,
              and of each of its stages, as official configs give them. They are found in the
              model; where they are given, they must agree with it.
            - ``backbone_small_lr`` (bool): Multiply every learning rate that is decayed by a
              further 0.1. Defaults to False.
            - ``offset_lr_scale`` (float): Factor on the learning rate of ``sampling_offsets`` and
              ``reference_points`` parameters, which belong to multi-scale deformable attention
              (the offsets of DCNv3 are not meant). In a segmentor it is limited to names
              containing ``backbone``. Defaults to 1.0.
            - ``dino_head`` (bool): Multiply the learning rate of those parameters by 0.1 instead
              of ``offset_lr_scale`` where they are outside the backbone. Defaults to False.

    Raises:
        TypeError: If ``paramwise_cfg`` is not a dict.
        ValueError: If an option is unknown, missing or invalid, ``lr`` or ``weight_decay`` of the
            optimizer is missing, or (when called) ``num_layers`` or ``depths`` is not what the
            model has, or can neither be found nor is given.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='CustomLayerDecayOptimizerConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.94))
    """

    options = {
        'num_layers': None,
        'depths': None,
        'backbone_small_lr': False,
        'dino_head': False,
        'offset_lr_scale': 1.0,
    }

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        for key in ('backbone_small_lr', 'dino_head'):
            if not isinstance(self.option[key], bool):
                raise ValueError(f'{key} must be a bool, got {self.option[key]!r}')
        self.number('offset_lr_scale')

    def add_params(self, params: list[dict], module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Append the parameter groups of the whole model ``module`` to ``params``."""
        option = self.option
        backbones = _find_backbones(module)
        for name, found in backbones.items():
            for key, value in (('depths', found), ('num_layers', sum(found))):
                given = list(option[key]) if isinstance(option[key], tuple) else option[key]
                if given not in (None, value):
                    raise ValueError(
                        f'paramwise_cfg has {key} {given}, but the backbone '
                        f'{name or type(module).__name__!r} has {value}: leave {key} out'
                    )
        depths = next(iter(backbones.values()), None)
        if any(found != depths for found in backbones.values()):
            raise ValueError(f'the backbones of a model must have the same depths, got {backbones}')
        num_layers = option['num_layers'] if depths is None else sum(depths)
        # The official rule knows no names inside a composite backbone: its weights are not decayed.
        prefixes = tuple(
            f'{name}.' if name else '' for name in backbones if 'cb_modules' not in name.split('.')
        )
        if depths is None:
            message = (
                'CustomLayerDecayOptimizerConstructor found no InternImage backbone (a module '
                f'with children patch_embed and levels) in {type(module).__name__}'
            )
            if num_layers is None:
                raise ValueError(f'{message}, and paramwise_cfg has no num_layers')
            message += ': no backbone parameter gets layer-wise decay'
            print_log(message, logger='current', level=logging.WARNING)
        is_segmentor = hasattr(module, 'decode_head')

        def rule(name: str, param: nn.Parameter) -> tuple[str, float, bool]:
            layer_id = _layer_id(name, depths or [num_layers], prefixes, is_segmentor)
            scale = option['layer_decay_rate'] ** (num_layers + 1 - layer_id)
            if option['backbone_small_lr'] and scale < 1:
                scale *= 0.1

            no_decay = (
                param.ndim == 1
                or name.endswith('.bias')
                or any(s in name for s in ('norm', 'relative_position', 'sampling_offsets'))
            )
            group_name = f'layer_{layer_id}_{"no_decay" if no_decay else "decay"}'
            if 'sampling_offsets' in name or 'reference_points' in name:
                if option['dino_head'] and layer_id == num_layers + 1:
                    group_name += '_0.1x'
                    scale *= 0.1
                elif not is_segmentor or 'backbone' in name:
                    group_name += '_offset_lr_scale'
                    scale *= option['offset_lr_scale']
            return group_name, scale, not no_decay

        self.add_groups(params, module, rule)


def _layer_id(
    name: str, depths: list[int], backbone_prefixes: tuple[str, ...], is_segmentor: bool
) -> int:
    """Layer id of the parameter ``name``, the table of the constructor's docstring."""
    # A parameter called level_embed is the detector's; heads keep an nn.Embedding of that name
    # (level_embed.weight), to which the official detection rule does not apply.
    if 'level_embeds' in name or name.split('.')[-1] == 'level_embed':
        return 0
    if is_segmentor and (name.startswith(_SEG_LAYER_0) or '.cb_modules.0.patch_embed.' in name):
        return 0
    for prefix in backbone_prefixes:
        if name.startswith(f'{prefix}patch_embed.'):
            return 0
        if name.startswith(f'{prefix}levels.'):
            level, kind, *rest = name.removeprefix(f'{prefix}levels.').split('.')
            if kind in ('blocks', 'post_norms'):
                return 1 + sum(depths[: int(level)]) + int(rest[0])
            # What closes a stage belongs to the next one; the last stage's falls back to its own
            # first block. Official behaviour.
            return 1 + sum(depths[: min(int(level) + 1, 3)])
    return sum(depths) + 1
