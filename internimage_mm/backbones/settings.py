"""What shapes an InternImage: one object that its stages and blocks are built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from .presets import architecture

NUM_STAGES = 4

CORE_OPS = {'DCNv3': None, 'DCNv3_pytorch': 'reference'}
"""Backend of the op for each value of the official argument ``core_op``."""

T = TypeVar('T')


@dataclass(frozen=True)
class UnlessArch:
    """Default of an argument that ``arch`` sets: None may be a value that the user wants."""

    value: Any

    def __repr__(self) -> str:
        return f'unless_arch({self.value!r})'


def unless_arch(value: T) -> T:
    """Default of a constructor argument: what the preset says, ``value`` without one."""
    return cast(T, UnlessArch(value))


def integers(name: str, value: Any) -> tuple[int, ...]:
    """A sequence of ints as a tuple, or a TypeError that names the argument."""
    if not isinstance(value, Sequence) or not all(isinstance(entry, int) for entry in value):
        raise TypeError(f'{name} must be a sequence of ints, got {value!r}')
    return tuple(value)


@dataclass(frozen=True)
class Settings:
    """Constructor arguments of :class:`InternImage` that shape the network, checked.

    Raises:
        TypeError: A number of channels, blocks or groups is no int.
        ValueError: A value that no InternImage can have.
    """

    core_op: str
    channels: int
    depths: Sequence[int]
    groups: Sequence[int]
    mlp_ratio: float
    drop_rate: float
    drop_path_rate: float
    drop_path_type: str
    act_layer: str
    norm_layer: str
    layer_scale: float | None
    offset_scale: float
    post_norm: bool
    res_post_norm: bool
    dw_kernel_size: int | None
    level2_post_norm: bool
    level2_post_norm_block_ids: Sequence[int] | None
    center_feature_scale: bool
    remove_center: bool
    with_cp: bool

    @classmethod
    def with_arch(cls, arch: str | None, **arguments: Any) -> Settings:
        """Fill in what was not given: from the preset ``arch``, else the argument's own default."""
        preset = architecture(arch) if arch is not None else {}
        return cls(
            **{
                name: preset.get(name, value.value) if isinstance(value, UnlessArch) else value
                for name, value in arguments.items()
            }
        )

    def __post_init__(self) -> None:
        if not isinstance(self.channels, int):
            raise TypeError(f'channels must be an int, got {self.channels!r}')
        for name in ('depths', 'groups'):
            if len(integers(name, getattr(self, name))) != NUM_STAGES:
                raise ValueError(
                    f'{name} must have {NUM_STAGES} entries, got {getattr(self, name)}'
                )
        if min(self.depths) < 1:
            raise ValueError(f'depths must be positive, got {self.depths}')
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f'channels must be a positive even number, got {self.channels}')
        for i, group in enumerate(self.groups):
            if group < 1 or self.stage_channels(i) % group:
                raise ValueError(
                    f'groups must divide the channels of their stage: stage {i} has '
                    f'{self.stage_channels(i)} channels and {group} groups '
                    f'(channels={self.channels}, groups={list(self.groups)})'
                )
        if self.core_op not in CORE_OPS:
            raise ValueError(f'core_op must be one of {", ".join(CORE_OPS)}, got {self.core_op!r}')
        if self.drop_path_type not in ('linear', 'uniform'):
            raise ValueError(
                f'drop_path_type must be linear or uniform, got {self.drop_path_type!r}'
            )
        if not 0 <= self.drop_path_rate < 1:  # at 1, DropPath divides by zero
            raise ValueError(f'drop_path_rate must be in [0, 1), got {self.drop_path_rate}')
        if self.level2_post_norm:
            ids, depth = self.level2_post_norm_block_ids, self.depths[2]
            if not ids or len(set(ids)) != len(ids) or not all(0 <= i < depth for i in ids):
                raise ValueError(
                    'level2_post_norm needs level2_post_norm_block_ids, different block indices of '
                    f'the {depth} blocks of stage 2, got {ids}'
                )

    def stage_channels(self, stage: int) -> int:
        return self.channels * 2**stage

    def drop_path_rates(self, stage: int) -> list[float]:
        """Rate of each block of a stage; ``linear`` grows from 0 over all blocks."""
        total, first = sum(self.depths), sum(self.depths[:stage])
        if self.drop_path_type == 'uniform':
            return [self.drop_path_rate] * self.depths[stage]
        return [
            self.drop_path_rate * i / max(total - 1, 1)
            for i in range(first, first + self.depths[stage])
        ]
