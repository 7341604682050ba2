"""The learning-rate schedule of the official classification release."""

import math

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """Linear warm-up, then the cosine that began with the warm-up, not after it.

    With t steps done, the learning rate is ``warmup_lr + (lr - warmup_lr) * t / warmup`` while
    ``t < warmup``, then ``eta_min + (lr - eta_min) * (1 + cos(pi * t / T_max)) / 2``, and
    ``eta_min`` from ``T_max`` on. Both ends are the same for all parameter groups, whatever their
    ``lr``. No chain of mmengine's schedulers gives this curve: they multiply, or begin the cosine
    after the warm-up.

    Args:
        optimizer (Optimizer | OptimWrapper): The optimizer.
        T_max (int): Epochs (or iterations if ``by_epoch`` is False) to the end of the cosine.
        warmup (int): Those of the warm-up. Default 0: none.
        warmup_lr (float): Learning rate at the beginning of the warm-up. Default 0.
        eta_min (float): Learning rate at the end. Default 0.
        begin (int): First step. Default 0.
        end (int): Step after the last one. Default: never.
        last_step (int): Of mmengine, for resuming.
        by_epoch (bool): Unit of the steps. With ``convert_to_iter_based=True`` in the config,
            ``T_max`` and ``warmup`` are given in epochs and the rate changes at each iteration.
        verbose (bool): Print each learning rate.

    Raises:
        ValueError: ``T_max`` is below 1, or ``warmup`` not in [0, T_max].
    """

    def __init__(
        self,
        optimizer,
        T_max: int,
        warmup: int = 0,
        warmup_lr: float = 0.0,
        eta_min: float = 0.0,
        begin: int = 0,
        end: int = INF,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        if T_max < 1 or not 0 <= warmup <= T_max:
            raise ValueError(
                f'T_max must be at least 1 and warmup between 0 and it, got T_max={T_max}, '
                f'warmup={warmup}'
            )
        self.T_max = T_max
        self.warmup = warmup
        self.warmup_lr = warmup_lr
        self.eta_min = eta_min
        super().__init__(
            optimizer,
            begin=begin,
            end=end,
            last_step=last_step,
            by_epoch=by_epoch,
            verbose=verbose,
        )

    @classmethod
    def build_iter_from_epoch(
        cls,
        optimizer,
        *,
        epoch_length: int,
        T_max: int,
        warmup: int = 0,
        begin: int = 0,
        end: int = INF,
        by_epoch: bool = True,
        **kwargs,
    ) -> 'WarmupCosineLR':
        """Build it with steps of iterations from settings in epochs (called by mmengine)."""
        if not by_epoch:
            raise ValueError('convert_to_iter_based needs by_epoch=True')
        return cls(
            optimizer,
            T_max=T_max * epoch_length,
            warmup=warmup * epoch_length,
            begin=begin * epoch_length,
            end=end if end == INF else end * epoch_length,
            by_epoch=False,
            **kwargs,
        )

    def _get_value(self) -> list[float]:
        step = self.last_step
        if step < self.warmup:
            return [
                self.warmup_lr + (lr - self.warmup_lr) * step / self.warmup
                for lr in self.base_values
            ]
        factor = (1 + math.cos(math.pi * min(step, self.T_max) / self.T_max)) / 2
        return [self.eta_min + (lr - self.eta_min) * factor for lr in self.base_values]
