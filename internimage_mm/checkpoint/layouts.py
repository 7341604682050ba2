"""From the layouts in which InternImage weights are published to the names of our models."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .reader import CheckpointError, check_names

# Where releases keep the weights: mmengine and mmcv, the official classification code, DeepSpeed.
_CONTAINERS = ('state_dict', 'model', 'module')
# Of joint pre-trainings: where the image model is among other branches.
_BRANCHES = ('student.', 'dcnv3.')


@dataclass
class Unpacked:
    """The weights of a checkpoint under their plain names, and how they were found.

    Attributes:
        state_dict: Name to tensor.
        container: Keys under which the weights were, e.g. ``['state_dict']``.
        notes: What was done to all names, in words.
        dropped: What was left out of the weights: name to reason.
    """

    state_dict: dict[str, Tensor]
    container: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


def extract_state_dict(
    checkpoint: Mapping[str, Any], source: str = 'the checkpoint'
) -> dict[str, Tensor]:
    """Find the weights in a checkpoint and give them their plain names; see :func:`unpack`."""
    return unpack(checkpoint, source).state_dict


def unpack(checkpoint: Mapping[str, Any], source: str = 'the checkpoint') -> Unpacked:
    """Find the weights in a checkpoint and give them their plain names.

    Knows the dicts of official classification (``model``), detection and segmentation
    (``state_dict``) releases, of mmengine, DeepSpeed (``module``), and bare state dicts; strips the
    ``module.`` of distributed training; turns the Hugging Face names (``model.`` in front,
    ``layer_scale1/2`` for ``gamma1/2``) into the official ones; takes the ``student.`` of a
    distillation and the image branch ``dcnv3.`` of M3I pre-training; drops the ``ema_*`` copies
    that the old EMA hook left in the released Cascade checkpoints (there the plain names hold the
    averages).

    Args:
        checkpoint: What :func:`read_checkpoint` returns. It is not changed.
        source: Where it comes from, for messages.

    Returns:
        The weights (none if the checkpoint holds no tensors) and what was done.

    Raises:
        CheckpointError: A name is no text, or a tensor is sparse, quantized or nested.
    """
    found = Unpacked({})
    while inner := next((k for k in _CONTAINERS if isinstance(checkpoint.get(k), dict)), None):
        checkpoint = checkpoint[inner]
        found.container.append(inner)
    check_names(checkpoint, source)
    state_dict = {}
    for name, value in checkpoint.items():
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.is_nested:
                raise CheckpointError(f'{source}: {name} is no ordinary (dense) tensor')
            state_dict[name] = value
        elif found.container:
            found.dropped[name] = 'no tensor'
    if state_dict and all(k.startswith('module.') for k in state_dict):
        state_dict = {k.removeprefix('module.'): v for k, v in state_dict.items()}
        found.notes.append("'module.' in front of every name removed")
    for branch in _BRANCHES:
        if f'{branch}patch_embed.conv1.weight' in state_dict:
            taken = (branch, 'clip_projector.', 'dcnv3_head_')
            found.notes.append(f"the branch '{branch}' taken")
            found.dropped |= {
                k: 'of another branch of the pre-training'
                for k in state_dict
                if not k.startswith(taken)
            }
            state_dict = {
                k.removeprefix(branch): v for k, v in state_dict.items() if k.startswith(taken)
            }
    if state_dict and all(k.startswith('model.') for k in state_dict):
        found.notes.append("Hugging Face names ('model.' in front, 'layer_scale') made official")
        state_dict = {
            re.sub(r'\.layer_scale([12])$', r'.gamma\1', k.removeprefix('model.')): v
            for k, v in state_dict.items()
        }
    for name, tensor in state_dict.items():
        if name.startswith('ema_') and '.' not in name:
            found.dropped[name] = 'left by the old EMA hook; the plain names hold the averages'
        else:
            found.state_dict[name] = tensor
    return found


def describe_backbone(state_dict: Mapping[str, Tensor]) -> str:
    """The variant whose weights these are, in words; empty if there is no InternImage in them."""
    channels = next(
        (v.shape[0] for k, v in state_dict.items() if k.endswith('patch_embed.conv2.weight')), None
    )
    blocks = [re.search(r'(?:^|\.)levels\.(\d+)\.blocks\.(\d+)\.', k) for k in state_dict]
    depths: dict[int, int] = {}
    for stage, block in (map(int, match.groups()) for match in blocks if match):
        depths[stage] = max(depths.get(stage, 0), block + 1)
    if channels is None or not depths:
        return ''
    return f'{channels} channels, depths {"-".join(str(depths[i]) for i in sorted(depths))}'
