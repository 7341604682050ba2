"""Layer-wise learning-rate decay of the official classification release."""

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

# The parts of a name that the official code looks for. In InternImage they are the offset layers of
# DCNv3 and its centre feature scale.
_DCN_PARTS = ('offset', 'attention_weights', 'center_feature_scale_proj', 'alpha_beta')
_OPTIONS = ('layer_decay_rate', 'dcn_lr_mult')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ClassificationLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Optimizer constructor of the ImageNet fine-tunings with layer decay.

    The learning rate of a parameter is ``lr * layer_decay_rate ** k``, ``k`` being the number of
    backbone blocks after its own: 0 for the last block, the end norm of the last level, the norms
    between blocks of the third level, neck and head; the stem belongs to the first block,
    downsampling and end norm of the other levels to the first block of the next level. This is
    another rule than that of the detection and segmentation release
    (:class:`CustomLayerDecayOptimizerConstructor`). Parameters whose name contains ``offset`` or
    ``center_feature_scale_proj`` get ``dcn_lr_mult`` times that. One-dimensional parameters are not
    decayed (weight decay 0), all others are.

    There is one parameter group per learning rate and weight decay, with the keys ``params``,
    ``lr``, ``lr_scale``, ``weight_decay`` and ``param_names``. Frozen parameters are in none.

    Args:
        optim_wrapper_cfg (dict): ``optimizer`` must give ``lr`` and ``weight_decay``.
        paramwise_cfg (dict): ``layer_decay_rate``, in (0, 1], and ``dcn_lr_mult`` (default 1.0).

    Raises:
        ValueError: An option is unknown, missing or out of range, ``lr`` or ``weight_decay`` is
            missing, or (when called) the model's ``backbone`` has no ``get_layer_depth``.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        cfg = self.paramwise_cfg
        if unknown := sorted(set(cfg) - set(_OPTIONS)):
            raise ValueError(f'unknown paramwise_cfg keys {unknown}; accepted are {_OPTIONS}')
        rate = cfg.get('layer_decay_rate')
        if not _is_number(rate) or not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate must be a number in (0, 1], got {rate!r}')
        scale = cfg.get('dcn_lr_mult', 1.0)
        if not _is_number(scale) or scale < 0:
            raise ValueError(f'dcn_lr_mult must be a number >= 0, got {scale!r}')
        for key, value in (('lr', self.base_lr), ('weight_decay', self.base_wd)):
            if value is None:
                raise ValueError(
                    f'the optimizer config must give {key}, got {dict(self.optimizer_cfg)}'
                )

    def add_params(self, params: list[dict], module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Append the parameter groups of the whole model ``module`` to ``params``."""
        get_layer_depth = getattr(getattr(module, 'backbone', None), 'get_layer_depth', None)
        if get_layer_depth is None:
            raise ValueError(
                f'{type(module).__name__} has no backbone that tells the layer of a parameter '
                '(get_layer_depth), which layer decay needs; InternImage does'
            )
        rate = self.paramwise_cfg['layer_decay_rate']
        dcn_lr_mult = self.paramwise_cfg.get('dcn_lr_mult', 1.0)
        groups: dict[tuple[float, bool], dict] = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            layer, num_layers = get_layer_depth(name, prefix='backbone.')
            scale = rate ** (num_layers - 1 - layer)
            if any(part in name for part in _DCN_PARTS):
                scale *= dcn_lr_mult
            decayed = param.ndim > 1
            group = groups.setdefault(
                (scale, decayed),
                {
                    'params': [],
                    'lr': scale * self.base_lr,
                    'lr_scale': scale,
                    'weight_decay': self.base_wd if decayed else 0.0,
                    'param_names': [],
                },
            )
            group['params'].append(param)
            group['param_names'].append(name)
        print_log(
            'Layer-wise learning-rate decay:\n'
            + '\n'.join(
                f'{len(group["params"])} parameters, lr {group["lr"]:.4g} (scale '
                f'{group["lr_scale"]:.4g}), weight decay {group["weight_decay"]:.4g}'
                for group in groups.values()
            ),
            logger='current',
            level=logging.DEBUG,
        )
        params.extend(groups.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
