"""What weights are called in the official release and here: one table per kind of model.

A row is a pair of patterns, official and ours. In a pattern ``{i}`` to ``{n}`` stand for numbers,
``{p}`` for the last component of a name (``weight``, ``running_mean``) and ``{x}`` for any end of a
name; both patterns of a row have the same placeholders, so every row can be read in both
directions. The names alone say which table applies (:func:`recognise`).

Beware: ``attentions.0`` is self-attention in the decoder of DINO and cross-attention
in that of Mask2Former. Their shapes are equal, so a mistake there would load without an error.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, cached_property

Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Split:
    """A tensor of ours that the release has in parts: ``torch.cat(parts, dim)``.

    ``{s}`` in ``official`` is the number of the part.
    """

    official: str
    ours: str
    dim: int
    parts: int


@dataclass(frozen=True)
class Family:
    """A kind of model and its names.

    Attributes:
        title: What it is, for messages.
        applies: Whether these are the names of such a model, in either naming.
        rows: Pairs of patterns, official and ours.
        splits: Tensors that the release keeps in parts.
        dropped: Patterns of official names that no model uses, and the reason.
        container: Under which key official checkpoints of this kind keep their weights.
    """

    title: str
    applies: Callable[[Collection[str]], bool]
    rows: Rows
    splits: tuple[Split, ...] = ()
    dropped: Rows = ()
    container: str = 'state_dict'

    @cached_property
    def ours(self) -> list[re.Pattern]:
        """Patterns of all names that are ours."""
        return [compile_pattern(name) for _, name in self.rows] + [
            compile_pattern(split.ours) for split in self.splits
        ]

    @cached_property
    def official(self) -> list[re.Pattern]:
        """Patterns of all names that are official."""
        return [compile_pattern(name) for name, _ in self.rows] + [
            compile_pattern(split.official) for split in self.splits
        ]


@cache
def compile_pattern(pattern: str) -> re.Pattern:
    """The regular expression for a pattern; ``{i}`` and so on become named groups."""

    def group(match: re.Match) -> str:
        name = match[1]
        return f'(?P<{name}>{dict(x=".+", p="[^.]+").get(name, "[0-9]+")})'

    return re.compile(re.sub(r'\\{(\w)\\}', group, re.escape(pattern)))


def _same(prefix: str, names: Collection[str], to: str | None = None) -> Rows:
    to = prefix if to is None else to
    return tuple((f'{prefix}{name}', f'{to}{name}') for name in names)


_BLOCK = 'levels.{i}.blocks.{j}.'
_TRUNK = (
    'patch_embed.conv{i}.{p}',
    'patch_embed.norm{i}.{j}.{p}',
    _BLOCK + 'norm{k}.0.{p}',
    _BLOCK + 'res_post_norm{k}.0.{p}',
    _BLOCK + 'gamma{k}',
    _BLOCK + 'mlp.fc{k}.{p}',
    _BLOCK + 'dcn.dw_conv.{k}.{p}',
    _BLOCK + 'dcn.dw_conv.{k}.{m}.{p}',
    _BLOCK + 'dcn.offset.{p}',
    _BLOCK + 'dcn.mask.{p}',
    _BLOCK + 'dcn.input_proj.{p}',
    _BLOCK + 'dcn.output_proj.{p}',
    _BLOCK + 'dcn.center_feature_scale_proj_weight',
    _BLOCK + 'dcn.center_feature_scale_proj_bias',
    'levels.{i}.norm.0.{p}',
    'levels.{i}.post_norms.{k}.0.{p}',
    'levels.{i}.downsample.conv.{p}',
    'levels.{i}.downsample.norm.{j}.{p}',
)
_CB_TRUNK = (
    *(f'cb_modules.{{n}}.{name}' for name in _TRUNK),
    'cb_modules.{n}.gamma{i}',
    'cb_linears.{i}.{j}.{p}',
)
_BACKBONE = _same('backbone.', _TRUNK)
_CB_BACKBONE = _same('backbone.', _CB_TRUNK)

# The release has the transformer inside the head, mmdet 3 in the detector.
_DINO_HEAD: Rows = (
    ('bbox_head.transformer.level_embeds', 'level_embed'),
    ('bbox_head.transformer.query_embed.weight', 'query_embedding.weight'),
    ('bbox_head.transformer.enc_output.{p}', 'memory_trans_fc.{p}'),
    ('bbox_head.transformer.enc_output_norm.{p}', 'memory_trans_norm.{p}'),
    (
        'bbox_head.transformer.encoder.layers.{i}.attentions.0.{x}',
        'encoder.layers.{i}.self_attn.{x}',
    ),
    ('bbox_head.transformer.encoder.layers.{i}.norms.{j}.{p}', 'encoder.layers.{i}.norms.{j}.{p}'),
    (
        'bbox_head.transformer.decoder.layers.{i}.attentions.0.attn.{x}',
        'decoder.layers.{i}.self_attn.attn.{x}',
    ),
    (
        'bbox_head.transformer.decoder.layers.{i}.attentions.1.{x}',
        'decoder.layers.{i}.cross_attn.{x}',
    ),
    ('bbox_head.transformer.decoder.layers.{i}.norms.{j}.{p}', 'decoder.layers.{i}.norms.{j}.{p}'),
    ('bbox_head.transformer.decoder.ref_point_head.0.{p}', 'decoder.ref_point_head.layers.0.{p}'),
    ('bbox_head.transformer.decoder.ref_point_head.2.{p}', 'decoder.ref_point_head.layers.1.{p}'),
    ('bbox_head.transformer.decoder.norm.{p}', 'decoder.norm.{p}'),
    ('bbox_head.label_embedding.weight', 'dn_query_generator.label_embedding.weight'),
    ('bbox_head.cls_branches.{i}.{p}', 'bbox_head.cls_branches.{i}.{p}'),
    ('bbox_head.reg_branches.{i}.{j}.{p}', 'bbox_head.reg_branches.{i}.{j}.{p}'),
)
_DINO_FFN: Rows = tuple(
    (
        f'bbox_head.transformer.{part}.layers.{{i}}.ffns.0.layers.{{x}}',
        f'{part}.layers.{{i}}.ffn.layers.{{x}}',
    )
    for part in ('encoder', 'decoder')
)
# InternImage-G: a feed-forward network in four parts, whose sum is one of four times the width.
_DINO_SPLIT_FFN_BIAS: Rows = tuple(
    (
        f'bbox_head.transformer.{part}.layers.{{i}}.ffns.0.fc2_bias',
        f'{part}.layers.{{i}}.ffn.layers.1.bias',
    )
    for part in ('encoder', 'decoder')
)
_DINO_SPLIT_FFN = tuple(
    Split(
        f'bbox_head.transformer.{part}.layers.{{i}}.ffns.0.{official}',
        f'{part}.layers.{{i}}.ffn.layers.{ours}',
        dim,
        parts=4,
    )
    for part in ('encoder', 'decoder')
    for official, ours, dim in (
        ('fc1_{s}.weight', '0.0.weight', 0),
        ('fc1_{s}.bias', '0.0.bias', 0),
        ('fc2_{s}.weight', '1.weight', 1),
    )
)
_CHANNEL_MAPPER = ('convs.{i}.{x}', 'extra_convs.{i}.{x}')

_MASK2FORMER: Rows = (
    (
        'decode_head.pixel_decoder.encoder.layers.{i}.attentions.0.{x}',
        'decode_head.pixel_decoder.encoder.layers.{i}.self_attn.{x}',
    ),
    (
        'decode_head.pixel_decoder.encoder.layers.{i}.ffns.0.{x}',
        'decode_head.pixel_decoder.encoder.layers.{i}.ffn.{x}',
    ),
    (
        'decode_head.transformer_decoder.layers.{i}.attentions.0.attn.{x}',
        'decode_head.transformer_decoder.layers.{i}.cross_attn.attn.{x}',
    ),
    (
        'decode_head.transformer_decoder.layers.{i}.attentions.1.attn.{x}',
        'decode_head.transformer_decoder.layers.{i}.self_attn.attn.{x}',
    ),
    (
        'decode_head.transformer_decoder.layers.{i}.ffns.0.{x}',
        'decode_head.transformer_decoder.layers.{i}.ffn.{x}',
    ),
    *_same(
        'decode_head.',
        (
            'pixel_decoder.encoder.layers.{i}.norms.{j}.{p}',
            'pixel_decoder.input_convs.{i}.{x}',
            'pixel_decoder.level_encoding.{p}',
            'pixel_decoder.lateral_convs.{i}.{x}',
            'pixel_decoder.output_convs.{i}.{x}',
            'pixel_decoder.mask_feature.{p}',
            'transformer_decoder.layers.{i}.norms.{j}.{p}',
            'transformer_decoder.post_norm.{p}',
            'query_embed.{p}',
            'query_feat.{p}',
            'level_embed.{p}',
            'cls_embed.{p}',
            'mask_embed.{i}.{p}',
        ),
    ),
)

# The release has one flat module; mmpretrain has backbone, neck (to one vector) and head.
_CLASSIFIER: Rows = (
    *_same('', _TRUNK, 'backbone.'),
    *_same(
        '',
        (
            'conv_head.{i}.{p}',
            'conv_head.{i}.{j}.{p}',
            'dcnv3_head_x4.{i}.{p}',
            'dcnv3_head_x3.{p}',
            'clip_projector.norm1_q.0.{p}',
            'clip_projector.norm1_k.0.{p}',
            'clip_projector.norm1_v.0.{p}',
            'clip_projector.cross_dcn.{p}',
            'clip_projector.cross_dcn.q.{p}',
            'clip_projector.cross_dcn.k.{p}',
            'clip_projector.cross_dcn.v.{p}',
            'clip_projector.cross_dcn.proj.{p}',
            'fc_norm.0.{p}',
        ),
        'neck.',
    ),
    ('head.{p}', 'head.fc.{p}'),
    # The metadata branch of iNaturalist 2018.
    *_same('', ('meta_head.{p}', 'meta_norm.{p}', 'meta_head_1.{x}', 'meta_head_2.{x}'), 'head.'),
)

_DINO_MARKS = ('bbox_head.transformer.level_embeds', 'memory_trans_fc.weight')
_POOLING = ('conv_head.', 'dcnv3_head_x3.', 'clip_projector.', 'fc_norm.')


def _is_dino(keys: Collection[str]) -> bool:
    return any(mark in keys for mark in _DINO_MARKS)


def _is_cb(keys: Collection[str]) -> bool:
    return any(k.startswith(('backbone.cb_modules.', 'cb_modules.')) for k in keys)


def _has_split_ffn(keys: Collection[str]) -> bool:
    if any('.ffns.0.fc1_0.' in k for k in keys):
        return True
    # InternImage-G, the only one with centre feature scale (H has it too) and post-norm (H has
    # res-post-norm).
    block = 'backbone.levels.0.blocks.0.'
    return (
        f'{block}dcn.center_feature_scale_proj_weight' in keys
        and f'{block}res_post_norm1.0.weight' not in keys
    )


def _is_classifier(keys: Collection[str]) -> bool:
    if 'patch_embed.conv1.weight' in keys:
        return any(k.startswith(_POOLING) or k in ('head.weight', 'head.bias') for k in keys)
    ours = tuple(f'neck.{name}' for name in _POOLING)
    return 'backbone.patch_embed.conv1.weight' in keys and any(
        k.startswith(ours) or k == 'head.fc.weight' for k in keys
    )


# The first that applies is the one.
FAMILIES = (
    Family(
        'DINO with CB-InternImage',
        applies=lambda keys: _is_dino(keys) and _is_cb(keys),
        # There the neck is a list of one.
        rows=(*_CB_BACKBONE, *_same('neck.0.', _CHANNEL_MAPPER, 'neck.'), *_DINO_HEAD, *_DINO_FFN),
    ),
    Family(
        'DINO with InternImage-G',
        applies=lambda keys: _is_dino(keys) and _has_split_ffn(keys),
        rows=(
            *_BACKBONE,
            *_same('neck.', _CHANNEL_MAPPER),
            *_DINO_HEAD,
            *_DINO_SPLIT_FFN_BIAS,
            *_DINO_FFN,
        ),
        splits=_DINO_SPLIT_FFN,
    ),
    Family(
        'DINO',
        applies=_is_dino,
        rows=(*_BACKBONE, *_same('neck.', _CHANNEL_MAPPER), *_DINO_HEAD, *_DINO_FFN),
    ),
    Family(
        'Mask2Former',
        applies=lambda keys: any(k.startswith('decode_head.transformer_decoder.') for k in keys),
        rows=(*_BACKBONE, *_MASK2FORMER),
        dropped=(('decode_head.conv_seg.{p}', 'a classifier that no decode head of it uses'),),
    ),
    Family(
        'segmentor',
        applies=lambda keys: any(k.startswith('decode_head.') for k in keys),
        rows=(*_BACKBONE, *_same('', ('decode_head.{x}', 'auxiliary_head.{x}'))),
    ),
    Family(
        'R-CNN',
        applies=lambda keys: any(k.startswith(('roi_head.', 'rpn_head.')) for k in keys),
        rows=(*_BACKBONE, *_same('', ('neck.{x}', 'rpn_head.{x}', 'roi_head.{x}'))),
    ),
    Family('classifier', applies=_is_classifier, rows=_CLASSIFIER, container='model'),
    Family(
        'backbone',
        applies=lambda keys: bool(keys) and all(_is_trunk(k) for k in keys),
        rows=(*_BACKBONE, *_CB_BACKBONE, *_same('', _TRUNK), *_same('', _CB_TRUNK)),
        container='model',
    ),
)


def _is_trunk(key: str) -> bool:
    stems = ('patch_embed.', 'levels.', 'cb_modules.', 'cb_linears.')
    return key.removeprefix('backbone.').startswith(stems)


def recognise(keys: Collection[str]) -> Family | None:
    """The kind of model that has these names, official or ours; None if it is none of the release.

    Args:
        keys: The names of all weights of a model, prefixes of containers stripped; a set or dict.
    """
    return next((family for family in FAMILIES if family.applies(keys)), None)
