"""From the layouts in which InternImage weights are published to the names of our models."""

import re
from collections.abc import Mapping

from torch import Tensor

# Where releases keep the weights: mmengine and mmcv, the official classification code, DeepSpeed.
_CONTAINERS = ('state_dict', 'model', 'module')
# Of joint pre-trainings: where the image model is among other branches.
_BRANCHES = ('student.', 'dcnv3.')


def extract_state_dict(checkpoint: dict) -> dict[str, Tensor]:
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

    Returns:
        Name to tensor; empty if the checkpoint holds no tensors.
    """
    state_dict = checkpoint
    while True:
        inner = next((k for k in _CONTAINERS if isinstance(state_dict.get(k), dict)), None)
        if inner is None:
            break
        state_dict = state_dict[inner]
    state_dict = {k: v for k, v in state_dict.items() if isinstance(v, Tensor)}
    state_dict = _strip_if_everywhere(state_dict, 'module.')
    for branch in _BRANCHES:
        if f'{branch}patch_embed.conv1.weight' in state_dict:
            state_dict = {
                k.removeprefix(branch): v
                for k, v in state_dict.items()
                if k.startswith((branch, 'clip_projector.', 'dcnv3_head_'))
            }
    if state_dict and all(k.startswith('model.') for k in state_dict):
        state_dict = {
            re.sub(r'\.layer_scale([12])$', r'.gamma\1', k.removeprefix('model.')): v
            for k, v in state_dict.items()
        }
    return {k: v for k, v in state_dict.items() if not k.startswith('ema_')}


def _strip_if_everywhere(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if not all(k.startswith(prefix) for k in state_dict):
        return state_dict
    return {k.removeprefix(prefix): v for k, v in state_dict.items()}


def top_level_names(state_dict: Mapping[str, Tensor]) -> list[str]:
    """The first components of the names, for messages: ``['backbone', 'decode_head']``."""
    return sorted({k.split('.', 1)[0] for k in state_dict})


def describe_backbone(state_dict: Mapping[str, Tensor]) -> str:
    """The variant whose weights these are, in words; empty if there is no InternImage in them."""
    channels = next(
        (v.shape[0] for k, v in state_dict.items() if k.endswith('patch_embed.conv2.weight')), None
    )
    blocks = [re.search(r'(?:^|\.)levels\.(\d+)\.blocks\.(\d+)\.', k) for k in state_dict]
    depths: dict[int, int] = {}
    for level, block in (map(int, match.groups()) for match in blocks if match):
        depths[level] = max(depths.get(level, 0), block + 1)
    if channels is None or not depths:
        return ''
    return f'{channels} channels, depths {"-".join(str(depths[i]) for i in sorted(depths))}'
