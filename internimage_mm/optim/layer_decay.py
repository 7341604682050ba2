"""Layer-wise learning-rate decay, as the official InternImage release trains with."""

import logging
import math
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

_REQUIRED = ('num_layers', 'layer_decay_rate', 'depths')
_DEFAULTS = {'backbone_small_lr': False, 'dino_head': False, 'offset_lr_scale': 1.0}

# Mask2Former's query-side parameters: the segmentation release trains them at the stem's rate.
_SEG_LAYER_0 = tuple(
    f'decode_head.{name}'
    for name in ('mask_embed', 'cls_embed', 'level_embed', 'query_embed', 'query_feat')
)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _find_backbones(model: nn.Module) -> dict[str, Any]:
    """Name prefix (dot included, empty for ``model`` itself) -> InternImage-like module."""
    return {
        f'{name}.' if name else '': module
        for name, module in model.named_modules()
        if {'patch_embed', 'levels'} <= dict(module.named_children()).keys()
        # The official rule knows no names inside a composite backbone: its weights are not decayed.
        and 'cb_modules' not in name.split('.')
    }


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CustomLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Optimizer constructor with layer-wise learning-rate decay for InternImage models.

    Every trainable parameter gets a layer id in ``0 .. num_layers + 1``. Its learning rate is
    ``lr * layer_decay_rate ** (num_layers + 1 - id)``:

    ==========================================  ==================================================
    parameter                                   layer id (``d`` = ``depths``)
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
    segmentor does ``cb_modules.0.patch_embed`` get id 0). A model without an InternImage backbone
    is trained with the rest of the rules and one warning.

    The rules and constants are those of the official release
    (https://github.com/OpenGVLab/InternImage, ``CustomLayerDecayOptimizerConstructor`` of its
    detection and segmentation trees).

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper. ``optimizer`` must give ``lr``
            and ``weight_decay``.
        paramwise_cfg (dict): The options, under their official names:

            - ``num_layers`` (int): Number of blocks of the backbone, ``sum(depths)``. Required.
            - ``layer_decay_rate`` (float): Learning-rate factor from one layer to the layer
              before it, in (0, 1]. Required.
            - ``depths`` (Sequence[int]): Blocks of each of the four levels. Required.
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
            optimizer is missing, or (when called) ``depths`` is not what the backbone has.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='CustomLayerDecayOptimizerConstructor',
        ...     paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.94, depths=[5, 5, 22, 5]))
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        cfg = self.paramwise_cfg
        accepted = [*_REQUIRED, *_DEFAULTS]
        if unknown := sorted(set(cfg) - set(accepted)):
            raise ValueError(f'unknown paramwise_cfg keys {unknown}; accepted are {accepted}')
        if missing := [key for key in _REQUIRED if key not in cfg]:
            raise ValueError(
                f'paramwise_cfg lacks {missing}; {list(_REQUIRED)} are required, got {dict(cfg)}'
            )
        depths = cfg['depths']
        if (
            not isinstance(depths, (list, tuple))
            or len(depths) != 4
            or not all(_is_int(depth) and depth > 0 for depth in depths)
        ):
            raise ValueError(f'depths must be 4 positive ints, got {depths!r}')
        if not _is_int(cfg['num_layers']) or cfg['num_layers'] != sum(depths):
            raise ValueError(
                f'num_layers must be sum(depths) = {sum(depths)} for depths {list(depths)}, '
                f'got {cfg["num_layers"]!r}'
            )
        rate = cfg['layer_decay_rate']
        if not _is_number(rate) or not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate must be a number in (0, 1], got {rate!r}')
        options = {**_DEFAULTS, **cfg}
        for key in ('backbone_small_lr', 'dino_head'):
            if not isinstance(options[key], bool):
                raise ValueError(f'{key} must be a bool, got {options[key]!r}')
        scale = options['offset_lr_scale']
        if not _is_number(scale) or not math.isfinite(scale) or scale < 0:
            raise ValueError(f'offset_lr_scale must be a finite number >= 0, got {scale!r}')
        for key, value in (('lr', self.base_lr), ('weight_decay', self.base_wd)):
            if value is None:
                raise ValueError(
                    f'the optimizer config must give {key}, got {dict(self.optimizer_cfg)}'
                )

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Append the parameter groups of ``module`` to ``params``.

        Args:
            params (list[dict]): List of parameter groups, extended in place.
            module (nn.Module): The whole model; the rules need the full parameter names.
            prefix (str): Unused, part of mmengine's signature.
            is_dcn_module (int | float, optional): Unused, part of mmengine's signature.

        Raises:
            ValueError: If ``depths`` is not what a backbone in ``module`` has.
        """
        options = {**_DEFAULTS, **self.paramwise_cfg}
        depths = tuple(options['depths'])
        backbones = _find_backbones(module)
        for name, backbone in backbones.items():
            found = tuple(
                len(list(level.blocks.children())) for level in backbone.levels.children()
            )
            if found != depths:
                raise ValueError(
                    f'paramwise_cfg has depths {list(depths)}, but the backbone '
                    f'{name.rstrip(".") or type(backbone).__name__!r} has {list(found)} blocks'
                )
        if not backbones:
            print_log(
                'CustomLayerDecayOptimizerConstructor found no InternImage backbone (a module '
                'with children patch_embed and levels, outside cb_modules) in '
                f'{type(module).__name__}: no backbone parameter gets layer-wise decay',
                logger='current',
                level=logging.WARNING,
            )
        is_segmentor = hasattr(module, 'decode_head')
        last_id = options['num_layers'] + 1

        groups: dict[str, dict] = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            layer_id = _layer_id(name, depths, tuple(backbones), is_segmentor)
            scale = options['layer_decay_rate'] ** (last_id - layer_id)
            if options['backbone_small_lr'] and scale < 1:
                scale *= 0.1

            no_decay = (
                param.ndim == 1
                or name.endswith('.bias')
                or any(s in name for s in ('norm', 'relative_position', 'sampling_offsets'))
            )
            group_name = f'layer_{layer_id}_{"no_decay" if no_decay else "decay"}'

            if 'sampling_offsets' in name or 'reference_points' in name:
                if options['dino_head'] and layer_id == last_id:
                    group_name += '_0.1x'
                    scale *= 0.1
                elif not is_segmentor or 'backbone' in name:
                    group_name += '_offset_lr_scale'
                    scale *= options['offset_lr_scale']

            group = groups.setdefault(
                group_name,
                {
                    'params': [],
                    'lr': scale * self.base_lr,
                    'lr_scale': scale,
                    'weight_decay': 0.0 if no_decay else self.base_wd,
                    'group_name': group_name,
                    'param_names': [],
                },
            )
            group['params'].append(param)
            group['param_names'].append(name)

        rows = [
            f'{name}: {len(group["params"])} parameters, lr {group["lr"]:.4g} '
            f'(scale {group["lr_scale"]:.4g}), weight decay {group["weight_decay"]:.4g}'
            for name, group in groups.items()
        ]
        print_log('Layer-wise learning-rate decay:\n' + '\n'.join(rows), logger='current')
        params.extend(groups.values())


def _layer_id(
    name: str, depths: tuple[int, ...], backbone_prefixes: tuple[str, ...], is_segmentor: bool
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
            # What closes a level belongs to the next one; the last level's falls back to its own
            # first block. Official behaviour.
            return 1 + sum(depths[: min(int(level) + 1, 3)])
    return sum(depths) + 1
