"""Converts checkpoint files, in either direction."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..output_file import check_output, output_file, renamed_when_complete
from .convert import Conversion, Naming, convert
from .layouts import Unpacked, unpack
from .reader import CheckpointError, read_checkpoint

# What official classification checkpoints keep next to the weights, and ours in 'meta'.
_PROGRESS = ('epoch', 'max_accuracy', 'max_accuracy_ema')


def convert_file(source: str, target: str, to: Naming, overwrite: bool = False) -> list[str]:
    """Write a checkpoint under the names of our models or of the official release.

    The tensors stay in the source file until they are written, so files larger than the memory can
    be converted. The target appears when it is complete, or not at all.

    Args:
        source: A file or address, as of :func:`read_checkpoint`: any official layout, or ours.
        target: The file to write. It gets ``state_dict`` and ``meta`` as in mmengine; an official
            classifier ``model`` instead.
        to: ``'ours'`` or ``'official'``. A source that is so named already is written as it is.
        overwrite: Replace the target if it is there. Default: False.

    Returns:
        What was renamed, merged, split and dropped, as lines of text.

    Raises:
        CheckpointError: The source cannot be read, holds no InternImage weights, or has names that
            are neither official nor ours (the message lists them); the target is there already, or
            cannot be written.
        UserError: The target is there and no regular file.
    """
    if os.path.splitext(target)[1] == '.safetensors':
        raise CheckpointError(f'{target}: PyTorch files are written; give it the ending .pth')
    check_output(target)
    if os.path.exists(target) and not overwrite:
        raise CheckpointError(f'{target} is there already; --overwrite replaces it')
    if not output_file(target).parent.is_dir():
        raise CheckpointError(f'{target} cannot be written: its folder does not exist')
    checkpoint = read_checkpoint(source, mmap=True)
    unpacked = unpack(checkpoint)
    conversion = convert(unpacked.state_dict, to)
    if conversion.family is None or conversion.left_over:
        raise CheckpointError(_left_over(source, conversion))
    content = _content(checkpoint, conversion, to)
    _write(content, target)
    used = {*unpacked.container[:1], *content, *content.get('meta', ())}
    left_out = [k for k, v in checkpoint.items() if k not in used and not isinstance(v, Tensor)]
    return list(_report(source, target, to, unpacked, conversion, left_out))


def _content(checkpoint: dict[str, Any], conversion: Conversion, to: Naming) -> dict[str, Any]:
    assert conversion.family is not None
    meta = dict(checkpoint['meta']) if isinstance(checkpoint.get('meta'), dict) else {}
    if conversion.family.container == 'model' and to == 'official':
        progress = {k: meta[k] for k in _PROGRESS if k in meta}
        return {
            'model': conversion.state_dict,
            **progress,
            **{k: checkpoint[k] for k in _PROGRESS if k in checkpoint},
        }
    meta |= {k: checkpoint[k] for k in _PROGRESS if isinstance(checkpoint.get(k), (int, float))}
    # Classes and colours: CLASSES and PALETTE in old mmdet and mmseg.
    if to == 'ours' and 'CLASSES' in meta:
        names = {'CLASSES': 'classes', 'PALETTE': 'palette'}
        found = {new: meta.pop(old) for old, new in names.items() if old in meta}
        meta['dataset_meta'] = {k: v for k, v in found.items() if v is not None}
    elif to == 'official' and 'dataset_meta' in meta:
        dataset = {k.lower(): v for k, v in meta.pop('dataset_meta').items()}
        meta |= {k.upper(): dataset[k] for k in ('classes', 'palette') if k in dataset}
    return {'state_dict': conversion.state_dict, 'meta': meta}


def _write(content: dict[str, Any], target: str) -> None:
    try:
        with renamed_when_complete(target) as unfinished, open(unfinished, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        raise CheckpointError(f'{target} cannot be written: {error}') from error


def _left_over(source: str, conversion: Conversion) -> str:
    if not conversion.state_dict:
        return f'{source} holds no tensors'
    what = (
        f'is not a checkpoint of a model of the InternImage release: of its '
        f'{len(conversion.state_dict)} names, none'
        if conversion.family is None
        else f'looks like a {conversion.family.title}, but {len(conversion.left_over)} of its '
        f'{len(conversion.state_dict)} names are neither official nor ours and none'
    )
    names = '\n  '.join(conversion.left_over)
    return f'{source} {what} of these can be converted:\n  {names}'


def _report(
    source: str,
    target: str,
    to: Naming,
    unpacked: Unpacked,
    conversion: Conversion,
    left_out: list[str],
) -> Iterator[str]:
    assert conversion.family is not None
    where = f" in '{' / '.join(unpacked.container)}'" if unpacked.container else ''
    yield f'{source}: {conversion.family.title}, {len(unpacked.state_dict)} weights{where}'
    yield from (f'  {note}' for note in unpacked.notes)
    naming = 'our names' if to == 'ours' else 'official names'
    renamed, merged, split = sum(conversion.rows.values()), conversion.merged, conversion.split
    dropped = {**unpacked.dropped, **conversion.dropped}
    parts = sum(map(len, split.values()))
    yield (
        f'  renamed {renamed}, merged {sum(map(len, merged.values()))} into {len(merged)}, '
        f'split {len(split)} into {parts}, dropped {len(dropped)}, '
        f'unchanged {len(conversion.state_dict) - renamed - len(merged) - parts}'
    )
    if conversion.rows:
        yield 'renamed:'
        yield from (f'  {old} -> {new} ({n})' for (old, new), n in conversion.rows.items())
    if merged:
        yield 'merged:'
        yield from (f'  {", ".join(old)} -> {new}' for new, old in merged.items())
    if split:
        yield 'split:'
        yield from (f'  {old} -> {", ".join(new)}' for old, new in split.items())
    if dropped:
        yield 'dropped, and not to be had back from the result:'
        for reason in dict.fromkeys(dropped.values()):
            names = [k for k, why in dropped.items() if why == reason]
            yield f'  {reason} ({len(names)}): {", ".join(names)}'
    if left_out:
        yield f'not weights of the model, left out: {", ".join(left_out)}'
    yield f'{target}: {len(conversion.state_dict)} weights, {naming}'
