"""From the official names to those of our models and back, along the tables of :mod:`.names`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .names import Family, Split, compile_pattern, recognise
from .reader import CheckpointError

Naming = Literal['ours', 'official']


@dataclass
class Conversion:
    """Weights under other names, and what was done to them.

    Attributes:
        state_dict: The result.
        family: The kind of model, ``None`` if it is none of the release (nothing was renamed).
        rows: How many names each row of the table has renamed: (old pattern, new pattern) to count.
        merged: New name to the names whose tensors it holds, concatenated.
        split: Old name to the names that hold its parts.
        dropped: Name to the reason.
        left_over: Names in the result that are neither official nor ours.
    """

    state_dict: dict[str, Tensor]
    family: Family | None
    rows: dict[tuple[str, str], int] = field(default_factory=dict)
    merged: dict[str, list[str]] = field(default_factory=dict)
    split: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)


def convert_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of the official release the names of our models.

    The names alone tell which model it is (:func:`~.names.recognise`). Weights that have our names
    already, and names that are neither, stay as they are.

    Args:
        state_dict: Name to tensor of a whole model, as of
            :func:`~internimage_mm.checkpoint.extract_state_dict`. It is not changed.

    Returns:
        A new dict with the same tensors, except the few that the release has in parts.
    """
    return convert(state_dict, 'ours').state_dict


def convert_to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_official`, to the last bit."""
    return convert(state_dict, 'official').state_dict


def convert(state_dict: Mapping[str, Tensor], to: Naming) -> Conversion:
    """Convert names in either direction and say what was done.

    Args:
        state_dict: Name to tensor of a whole model, in either naming. It is not changed.
        to: ``'ours'`` or ``'official'``.

    Raises:
        CheckpointError: ``to='official'``, and a tensor cannot be split into equal parts.
    """
    family = recognise(state_dict)
    result = Conversion({}, family)
    if family is None:
        result.state_dict = dict(state_dict)
        result.left_over = list(state_dict)
        return result
    wanted = family.ours if to == 'ours' else family.official
    rows = [(old, new) if to == 'ours' else (new, old) for old, new in family.rows]
    dropped = [(compile_pattern(pattern), reason) for pattern, reason in family.dropped]
    for name, tensor in _regroup(state_dict, family.splits, to, result).items():
        reason = next((why for pattern, why in dropped if pattern.fullmatch(name)), None)
        if reason:
            result.dropped[name] = reason
        elif any(pattern.fullmatch(name) for pattern in wanted):
            result.state_dict[name] = tensor
        elif found := _translate(name, rows):
            new, row = found
            result.state_dict[new] = tensor
            result.rows[row] = result.rows.get(row, 0) + 1
        else:
            result.state_dict[name] = tensor
            result.left_over.append(name)
    return result


def _translate(name: str, rows: list[tuple[str, str]]) -> tuple[str, tuple[str, str]] | None:
    for old, new in rows:
        if match := compile_pattern(old).fullmatch(name):
            return new.format_map(match.groupdict()), (old, new)
    return None


def _regroup(
    state_dict: Mapping[str, Tensor], splits: tuple[Split, ...], to: Naming, result: Conversion
) -> dict[str, Tensor]:
    """Merge or split tensors; the others are passed on."""
    if not splits:
        return dict(state_dict)
    out: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for split in splits:
            match = compile_pattern(split.official if to == 'ours' else split.ours).fullmatch(name)
            if not match:
                continue
            ours = split.ours.format_map(match.groupdict())
            parts = [
                split.official.format_map({**match.groupdict(), 's': s}) for s in range(split.parts)
            ]
            if to == 'official':
                out.update(zip(parts, _split(name, tensor, split), strict=True))
                result.split[name] = parts
            elif not all(part in state_dict for part in parts):
                continue  # incomplete, so it stays and is left over
            elif name == parts[0]:
                out[ours] = torch.cat([state_dict[part] for part in parts], split.dim)
                result.merged[ours] = parts
            break
        else:
            out[name] = tensor
    return out


def _split(name: str, tensor: Tensor, split: Split) -> list[Tensor]:
    size = tensor.shape[split.dim] if tensor.ndim > split.dim else 0
    if size % split.parts or not size:
        raise CheckpointError(
            f'{name} cannot be split into {split.parts} equal parts along dimension {split.dim}, '
            f'as the official release has it: its shape is {tuple(tensor.shape)}'
        )
    # Copies, because a saved view brings all of the tensor that it is a view of.
    return [part.clone() for part in tensor.chunk(split.parts, split.dim)]
