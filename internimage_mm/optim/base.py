"""What the two constructors of layer-wise learning rates share."""

import logging
import math
from collections.abc import Callable
from typing import Any, ClassVar

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

Rule = Callable[[str, nn.Parameter], tuple[str, float, bool]]
"""Name and parameter -> name of its group, factor on ``lr``, whether its weights decay."""


class LayerWiseConstructor(DefaultOptimWrapperConstructor):
    """Checks the options and makes parameter groups by a rule."""

    options: ClassVar[dict[str, Any]]
    """Accepted keys of ``paramwise_cfg`` besides ``layer_decay_rate``, with their defaults."""

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        accepted = ['layer_decay_rate', *self.options]
        if unknown := sorted(set(self.paramwise_cfg) - set(accepted)):
            raise ValueError(f'unknown paramwise_cfg keys {unknown}; accepted are {accepted}')
        if 'layer_decay_rate' not in self.paramwise_cfg:
            raise ValueError(f'paramwise_cfg lacks layer_decay_rate, got {self.paramwise_cfg}')
        self.option = {**self.options, **self.paramwise_cfg}
        rate = self.number('layer_decay_rate')
        if not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate must be a number in (0, 1], got {rate}')
        for key, value in (('lr', self.base_lr), ('weight_decay', self.base_wd)):
            if value is None:
                raise ValueError(
                    f'the optimizer config must give {key}, got {dict(self.optimizer_cfg)}'
                )

    def number(self, key: str) -> float:
        """The option ``key``, a finite number that is not negative."""
        value = self.option[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ValueError(f'{key} must be a finite number >= 0, got {value!r}')
        return value

    def add_groups(self, params: list[dict], module: nn.Module, rule: Rule) -> None:
        """Append the groups of all trainable parameters of ``module`` to ``params``."""
        groups: dict[str, dict] = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            key, scale, decayed = rule(name, param)
            group = groups.setdefault(
                key,
                {
                    'params': [],
                    'lr': scale * self.base_lr,
                    'lr_scale': scale,
                    'weight_decay': self.base_wd if decayed else 0.0,
                    'group_name': key,
                    'param_names': [],
                },
            )
            group['params'].append(param)
            group['param_names'].append(name)
        rows = [
            f'{key}: {len(group["params"])} parameters, lr {group["lr"]:.4g} '
            f'(scale {group["lr_scale"]:.4g}), weight decay {group["weight_decay"]:.4g}'
            for key, group in groups.items()
        ]
        text = '\n'.join(['Layer-wise learning-rate decay:', *rows])
        print_log(text, logger='current', level=logging.DEBUG)
        params.extend(groups.values())
