"""Check that a state dict fits a model: strictly, as a random layer looks like a bad model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine import BaseModule, print_log
from .convert import convert_official
from .imagenet_22k import take_1k_of_22k
from .layouts import describe_backbone, extract_state_dict
from .reader import CheckpointError, read_checkpoint

# What official classification checkpoints hold besides the backbone.
_CLASSIFIER = (
    *('head.', 'conv_head.', 'fc_norm.', 'clip_projector.', 'dcnv3_head_x3.', 'dcnv3_head_x4.'),
)
_SHOWN = 4  # keys named in a message


@dataclass
class Mismatch:
    """Names that a state dict lacks, has too many, or has in another shape than the model."""

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)


def compare(state_dict: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> Mismatch:
    """Compare names and shapes; what may be missing without changing an output is not counted.

    That is batch counters, and the updates of LoRA, which start at zero.
    """
    return Mismatch(
        missing=[
            k
            for k in model_state
            if k not in state_dict and not k.endswith('num_batches_tracked') and '.lora_' not in k
        ],
        unexpected=[k for k in state_dict if k not in model_state],
        reshaped=[
            k for k, v in state_dict.items() if k in model_state and v.shape != model_state[k].shape
        ],
    )


def check_state_dict(
    state_dict: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    source: str,
    model_name: str,
) -> None:
    """Raise unless the state dict fits the model: names and shapes; warn of NaN and infinity.

    Args:
        state_dict: What is to be loaded.
        model_state: The model's own state dict.
        source: Where the weights come from, for messages.
        model_name: What they are to fill, for messages.

    Raises:
        CheckpointError: It does not fit. The message counts the missing, unknown and reshaped
            names, shows the first of each (with both shapes), and guesses at the reason. Or a
            tensor has no values (``meta``), or is complex or integer where the model computes with
            floating-point numbers, to which PyTorch would cast it silently.
    """
    mismatch = compare(state_dict, model_state)
    if mismatch:
        raise CheckpointError(_explain(mismatch, state_dict, model_state, source, model_name))
    broken = []
    for name, tensor in state_dict.items():
        wanted = model_state[name]
        if wanted.is_meta:
            continue
        if tensor.is_meta:
            raise CheckpointError(f'{source}: {name} has a shape but no values (device meta)')
        if wanted.is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(
                f'{source}: {name} holds numbers of type {tensor.dtype}; the model needs '
                f'floating-point ones ({wanted.dtype})'
            )
        # Smallest and largest number are NaN if any is.
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(torch.aminmax(tensor.detach().float()))
            if not extremes.isfinite().all():
                broken.append(name)
    if broken:
        print_log(
            f'{source}: {len(broken)} of {len(state_dict)} tensors hold NaN or infinity: '
            f'{_first(broken)}. Is it from a training that diverged?',
            logger='current',
            level=logging.WARNING,
        )


def named_checkpoints(init_cfg: dict | Sequence[dict] | None) -> list[dict]:
    """The entries of an ``init_cfg``, in any form that mmengine allows, that name a checkpoint."""
    return [cfg for cfg in _entries(init_cfg) if _is_pretrained(cfg)]


def initialize_strictly(
    backbone: BaseModule, load: Callable[[dict[str, Tensor], str, str | None], None]
) -> None:
    """Do what ``backbone.init_cfg`` says, as mmengine does, but load checkpoints with ``load``.

    mmengine's own loading knows no official layout and logs a line where nothing fits.

    Args:
        backbone: A backbone with an ``init_cfg``: a dict or a list of them, of which any may name a
            checkpoint (type ``Pretrained``). Those come last, as in mmengine.
        load: Takes the weights in a checkpoint, and ``checkpoint`` and ``prefix`` of the entry.
    """
    from mmengine.model import initialize

    initialize(backbone, [cfg for cfg in _entries(backbone.init_cfg) if not _is_pretrained(cfg)])
    for cfg in named_checkpoints(backbone.init_cfg):
        path = cfg['checkpoint']
        load(extract_state_dict(read_checkpoint(path), path), path, cfg.get('prefix'))
    backbone.is_init = True


def _is_pretrained(cfg: dict) -> bool:
    from mmengine.model import PretrainedInit
    from mmengine.registry import WEIGHT_INITIALIZERS

    kind = cfg.get('type')
    return 'checkpoint' in cfg and PretrainedInit is (
        WEIGHT_INITIALIZERS.get(kind) if isinstance(kind, str) else kind
    )


def _entries(init_cfg: dict | Sequence[dict] | None) -> Sequence[dict]:
    return [init_cfg] if isinstance(init_cfg, dict) else init_cfg or ()


def load_backbone(
    backbone: nn.Module, state_dict: Mapping[str, Tensor], path: str, prefix: str | None = None
) -> None:
    """Fill an InternImage backbone with the weights of any official checkpoint, or raise.

    ImageNet classification, detection and segmentation checkpoints work alike. What is not backbone
    (classifier, neck, heads) is left out.

    Args:
        backbone: The backbone to fill, in place.
        state_dict: As of :func:`extract_state_dict`.
        path: Where the weights come from, for messages.
        prefix: What stands before the backbone's names, e.g. ``'backbone'``. Default:
            ``'backbone'`` if there are names that start so, else nothing.

    Raises:
        CheckpointError: There is no backbone, or that of another variant. Only ``gamma1`` and
            ``gamma2`` may be missing, and only all of them, as in the official ImageNet checkpoint
            of InternImage-T; they keep their values (1.0 in the det. and seg. configs).
    """
    weights = fit_backbone(state_dict, backbone, path, prefix)
    backbone.load_state_dict(weights, strict=False)
    print_log(
        f'{type(backbone).__name__}: {len(weights)} tensors loaded from {path}', logger='current'
    )


def fit_backbone(
    state_dict: Mapping[str, Tensor], backbone: nn.Module, path: str, prefix: str | None = None
) -> dict[str, Tensor]:
    """The weights of a backbone in a flat state dict, or an error; as above."""
    if prefix is None:
        prefix = 'backbone.' if any(k.startswith('backbone.') for k in state_dict) else ''
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    model_state = backbone.state_dict()
    weights = {
        k.removeprefix(prefix): v
        for k, v in state_dict.items()
        if k.startswith(prefix) and not k.removeprefix(prefix).startswith(_CLASSIFIER)
    }
    weights = remove_centers(weights, model_state)
    name = type(backbone).__name__
    if not any(k in model_state for k in weights):
        raise CheckpointError(_no_backbone_message(path, state_dict, name, prefix))
    scales = [k for k in model_state if k.endswith(('.gamma1', '.gamma2'))]
    if scales and not any(k.endswith(('.gamma1', '.gamma2')) for k in weights):
        kept = {k: model_state.pop(k) for k in scales}
        if not all((v == 1).all() for v in kept.values()):
            print_log(
                f'{path} has no layer scale (gamma1, gamma2), which then has to be 1 for the model '
                'to compute what was trained, but the backbone was built with another layer_scale.',
                logger='current',
                level=logging.WARNING,
            )
    check_state_dict(weights, model_state, path, name)
    return weights


def fit_state_dict(
    checkpoint: dict, model: nn.Module, source: str, heads_may_differ: bool = False
) -> dict[str, Tensor]:
    """Take the weights for a whole detector, segmentor or classifier out of a checkpoint, or raise.

    Args:
        checkpoint: What :func:`read_checkpoint` returns, official or saved by mmengine.
        model: The model that is to be filled (not wrapped); it is not changed.
        source: Where the checkpoint comes from, for messages.
        heads_may_differ: For fine-tuning: only the backbone has to fit. What else does not is left
            out, and one warning lists it. Default: everything has to fit.

    Returns:
        The weights under today's names, ready for ``model.load_state_dict(..., strict=False)``.

    Raises:
        CheckpointError: There is no backbone in the checkpoint, or it does not fit.
    """
    model_state = model.state_dict()
    state_dict = convert_official(extract_state_dict(checkpoint, source))
    state_dict = take_1k_of_22k(state_dict, model_state, source)
    state_dict = remove_centers(state_dict, model_state)
    name = type(model).__name__
    has_backbone = any(k.startswith('backbone.') for k in model_state)
    if has_backbone and not any(k.startswith('backbone.') for k in state_dict):
        message = _no_backbone_message(source, state_dict, name, 'backbone.')
        if any(f'backbone.{k}' in model_state for k in state_dict):
            message += (
                '. It looks like a backbone alone (ImageNet): give it as '
                "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...) and train"
            )
        raise CheckpointError(message)
    mismatch = compare(state_dict, model_state) if heads_may_differ else None
    if mismatch:
        wrong = {*mismatch.missing, *mismatch.unexpected, *mismatch.reshaped}
        heads = {k for k in wrong if not k.startswith('backbone.')}
        state_dict = {k: v for k, v in state_dict.items() if k not in heads}
        model_state = {k: v for k, v in model_state.items() if k not in heads}
    check_state_dict(state_dict, model_state, source, name)
    if mismatch:
        print_log(
            f'{source}: the backbone fits; of the rest, {len(mismatch.missing)} weights are not in '
            f'the file and {len(mismatch.reshaped)} have another shape, so these start anew: '
            f'{", ".join([*mismatch.missing, *mismatch.reshaped]) or "none"}. Unused from the '
            f'file: {", ".join(mismatch.unexpected) or "none"}',
            logger='current',
            level=logging.WARNING,
        )
    return state_dict


def remove_centers(
    state_dict: Mapping[str, Tensor], model_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Leave out the offsets and masks of the centre point where the model has none.

    The official classification code does so when it loads a released checkpoint into a model with
    ``remove_center``: of each group's 9 masks it drops the fifth, and of its 18 offsets (x, y of
    each point) the ninth and tenth.

    Args:
        state_dict: The weights of a 3x3 operator with or without centre.
        model_state: The names and shapes in the model. A tensor is cut only if that makes it fit.

    Returns:
        A new dict.
    """
    out = dict(state_dict)
    for name, wanted in model_state.items():
        per_point = 2 if '.dcn.offset.' in name else 1 if '.dcn.mask.' in name else 0
        if not per_point or name not in out or out[name].shape[0] * 8 != wanted.shape[0] * 9:
            continue
        points = out[name].unflatten(0, (-1, 9, per_point))
        out[name] = torch.cat([points[:, :4], points[:, 5:]], 1).flatten(0, 2)
    return out


def _no_backbone_message(
    source: str, state_dict: Mapping[str, Tensor], model_name: str, prefix: str
) -> str:
    found = ', '.join(sorted({k.split('.', 1)[0] for k in state_dict})) or 'no tensors at all'
    expected = f'names like {prefix}patch_embed.conv1.weight'
    return f'{source} has no weights for {model_name}: {expected} are needed, it has {found}'


def _explain(
    mismatch: Mismatch,
    state_dict: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    source: str,
    model_name: str,
) -> str:
    lines = [f'{source} does not fit {model_name}:']
    if mismatch.missing:
        lines.append(
            f'  {len(mismatch.missing)} of {len(model_state)} weights of the model are missing in '
            f'the file: {_first(mismatch.missing)}'
        )
    if mismatch.unexpected:
        lines.append(
            f'  {len(mismatch.unexpected)} weights of the file are unknown to the model: '
            f'{_first(mismatch.unexpected)}'
        )
    if mismatch.reshaped:
        shown = [
            f'{k} (file {tuple(state_dict[k].shape)}, model {tuple(model_state[k].shape)})'
            for k in mismatch.reshaped
        ]
        lines.append(f'  {len(mismatch.reshaped)} weights have another shape: {_first(shown)}')
    file, model = describe_backbone(state_dict), describe_backbone(model_state)
    wrong = [*mismatch.missing, *mismatch.unexpected, *mismatch.reshaped]
    if file and model and file != model:
        lines.append(
            f'  Is it the checkpoint of another variant? The file has {file}; the model {model}.'
        )
    elif any(k.startswith('backbone.') for k in model_state) and not any(
        k.startswith('backbone.') for k in wrong
    ):
        lines.append('  The backbone fits, the heads do not: another method or number of classes?')
    else:
        lines.append(
            '  Is it the checkpoint of another variant, with other options (layer_scale, '
            'post_norm, res_post_norm, center_feature_scale, dw_kernel_size, groups)?'
        )
    return '\n'.join(lines)


def _first(names: list[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
