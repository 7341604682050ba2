"""Model settings: backbone, R-CNN and encoder-decoder models as they are, DINO and Mask2Former in
the places where today's libraries keep their parts."""

from typing import Any

from ..backbones import InternImage
from ..backbones.presets import ARCHITECTURES, architecture
from .settings import Settings

# Old class -> the one that computes the same here.
CLASSES = {
    'CBDINO': 'CBDINO',
    'DINO': 'InternImageDINO',
    'DINOHead': 'InternImageDINOHead',
    'CBDINOHead': 'CBDINOHead',
    'CBChannelMapper': 'CBChannelMapper',
    'EncoderDecoderMask2Former': 'EncoderDecoder',
    'EncoderDecoderMask2FormerAug': 'EncoderDecoder',
    'Mask2FormerHead': 'SemanticMask2FormerHead',
}
# Compared file by file: these models kept names and arguments of all their parts.
_PLAIN = (
    'CascadeRCNN FasterRCNN MaskRCNN RetinaNet RPN FastRCNN ATSS FCOS GFL EncoderDecoder '
    'CascadeEncoderDecoder'
)
# Heads of the official repository, or with other arguments today.
_OLD_HEADS = 'Mask2FormerHead MaskFormerHead DeformableDETRHead DETRHead'
_INTERNIMAGE = ('InternImage', 'CBInternImage')
_ATTENTION = (
    'embed_dims num_heads num_levels num_points dropout attn_drop proj_drop dropout_layer '
    'im2col_step norm_cfg init_cfg'
)
_FFN = 'embed_dims feedforward_channels num_fcs ffn_drop act_cfg add_identity'
_MASK2FORMER_HEAD = (
    'in_channels strides feat_channels out_channels num_classes num_queries '
    'num_transformer_feat_level enforce_decoder_input_project align_corners=False'
)
# Orders of operation that today's layers have.
_ENCODER = 'self_attn norm ffn norm'
_DECODER = 'self_attn norm cross_attn norm ffn norm'
_MASKED_DECODER = 'cross_attn norm self_attn norm ffn norm'


def migrate_model(old: Settings, preprocessor: dict) -> dict:
    """Translate ``model``, with ``preprocessor`` as its ``data_preprocessor``."""
    kind = old.take('type')
    backbone, pretrained = _backbone(old.section('backbone')), old.take('pretrained')
    if backbone['type'] not in _INTERNIMAGE:
        old.note('backbone', f'{backbone["type"]} is kept as it is')
        if pretrained:
            backbone.setdefault('init_cfg', dict(type='Pretrained', checkpoint=pretrained))
    elif pretrained:
        old.note('pretrained', f'{pretrained} is left out: InternImage never looked at it')
    model: dict[str, Any] = dict(
        type=CLASSES.get(kind, kind),
        data_preprocessor=preprocessor,
        backbone=backbone,
        **old.keep('init_cfg'),
    )
    if neck := old.take('neck'):
        first, *others = neck if isinstance(neck, list) else [neck]
        if others:
            old.problem('neck', f'a list of {len(neck)} necks; mmdet 3 takes one')
        model['neck'] = {**first, 'type': CLASSES.get(first['type'], first['type'])}
    if kind in ('DINO', 'CBDINO'):
        return {**model, **_dino(old)}
    if kind.startswith('EncoderDecoderMask2Former'):
        if kind.endswith('Aug'):
            old.problem('type', f'{kind} crops the stitched map of a slide test to the image')
        return {**model, **_mask2former(old)}
    if kind not in _PLAIN.split():
        old.problem('type', f'{kind} is not known here; its settings are kept as they are')
    rest = old.rest()
    for name, part in rest.items():
        if isinstance(part, dict) and part.get('type') in _OLD_HEADS.split():
            old.problem(name, f'the class {part["type"]} must be ported')
    return {**model, **rest}


def _backbone(old: Settings) -> dict:
    """An InternImage by its preset, if it is one; every argument kept its meaning."""
    kind, settings = old.take('type'), old.rest()
    if settings.get('init_cfg', 0) is None:
        del settings['init_cfg']
    if kind not in _INTERNIMAGE:
        return {'type': kind, **settings}
    if settings.get('core_op') == 'DCNv3':
        del settings['core_op']
    full = {**InternImage.DEFAULTS, **settings}
    structure = set().union(*ARCHITECTURES.values())
    for name in ARCHITECTURES:
        preset = {**InternImage.DEFAULTS, **architecture(name)}
        if all(full[key] == preset[key] for key in structure):
            defaults = InternImage.DEFAULTS.items()
            own = {
                k: v for k, v in settings.items() if k not in structure and (k, v) not in defaults
            }
            written = {key: full[key] for key in ('drop_path_rate', 'with_cp')}
            return {'type': kind, 'arch': name, **written, **own}
    return {'type': kind, **settings}


def backbone_depths(backbone: dict) -> list[int]:
    """Blocks of each level of a translated backbone; empty if it is no InternImage."""
    preset = architecture(backbone['arch']) if 'arch' in backbone else {}
    return list(backbone.get('depths', preset.get('depths', ())))


def _ported(part: Settings) -> str:
    """What the class of ``part`` is called here; reported if there is none."""
    kind = part.take('type')
    if kind not in CLASSES:
        part.problem('type', f'{kind} must be ported')
    return CLASSES.get(kind, kind)


def _check(part: Settings, *known: str) -> str:
    """The class of ``part``, reported if it is none of ``known``."""
    kind = part.take('type', known[0])
    if kind not in known:
        part.problem('type', f'no rule for {kind}')
    return kind


def _layers(part: Settings, order: str) -> dict:
    """``encoder`` or ``decoder``: how many layers, of what. ``order`` is today's."""
    layers = part.section('transformerlayers')
    attentions = []
    for old in layers.sections('attn_cfgs'):
        kind = _check(old, 'MultiheadAttention', 'MultiScaleDeformableAttention')
        attentions.append(old.keep(_ATTENTION))
        if kind == 'MultiScaleDeformableAttention':
            attentions[-1].setdefault('num_levels', 4)  # mmcv's default then and now
    ffn = layers.section('ffn_cfgs')
    if _check(ffn, 'FFN', 'EfficientFFN') == 'EfficientFFN':
        ffn.note('', 'EfficientFFN is a plain FFN here; its checkpoints are converted')
    older = layers.keep('feedforward_channels ffn_dropout>ffn_drop')
    feedforward = {'embed_dims': attentions[0].get('embed_dims', 256), **ffn.keep(_FFN)}
    feedforward |= {key: value for key, value in older.items() if key not in feedforward}
    if (found := ' '.join(layers.take('operation_order', order.split()))) != order:
        layers.problem('operation_order', f"{found}; today's layers compute {order}")

    new, layer = part.keep('num_layers=None'), {'self_attn_cfg': attentions[0]}
    if 'cross_attn' in order:
        new |= part.keep('return_intermediate=True')
        layer['cross_attn_cfg'] = dict(attentions[-1])
    return {**new, 'layer_cfg': {**layer, 'ffn_cfg': feedforward}}


def _matching(train: Settings, prefix: str = '') -> dict:
    """The assigner: named costs become ``match_costs``."""
    old = train.section('assigner')
    _check(old, 'HungarianAssigner', 'MaskHungarianAssigner')
    named = old.keep('cls_cost mask_cost dice_cost reg_cost iou_cost')
    costs = [{**cost, 'type': prefix + cost['type']} for cost in named.values()]
    return dict(type=f'{prefix}HungarianAssigner', match_costs=costs)


def _encoding(part: Settings) -> dict:
    encoding = dict(part.take('positional_encoding'))
    encoding.pop('type', None)
    return encoding


def _dino(old: Settings) -> dict:
    """DINO: the transformer moved from the head into the detector."""
    head = old.section('bbox_head')
    transformer, noise = head.section('transformer'), head.section('dn_cfg')
    scale = noise.section('noise_scale')
    _check(transformer, 'DinoTransformer')
    new = head.keep('num_query>num_queries=None with_box_refine=False as_two_stage=False')
    queries = new['num_queries']
    if (proposals := transformer.take('two_stage_num_proposals')) not in (None, queries):
        why = f'{proposals} with {queries} queries; they are one number now'
        transformer.problem('two_stage_num_proposals', why)
    losses = head.keep(
        'num_classes sync_cls_avg_factor loss_cls loss_bbox loss_iou cb_first_weight'
    )
    return dict(
        **new,
        encoder=_layers(transformer.section('encoder'), _ENCODER),
        decoder={**_layers(transformer.section('decoder'), _DECODER), 'post_norm_cfg': None},
        positional_encoding=_encoding(head),
        bbox_head=dict(type=_ported(head), **losses),
        dn_cfg=dict(
            **scale.keep('label>label_noise_scale=0.5 box>box_noise_scale=0.4'),
            **noise.keep('group_cfg=None'),
        ),
        train_cfg=dict(assigner=_matching(old.section('train_cfg'))),
        **old.keep('test_cfg=None'),
    )


def _mask2former(old: Settings) -> dict:
    """Mask2Former: layers by name, and the training settings in the head."""
    head, train = old.section('decode_head'), old.section('train_cfg')
    pixel = head.section('pixel_decoder')
    losses = head.keep('loss_cls loss_mask loss_dice')
    new = dict(
        type=_ported(head),
        **head.keep(_MASK2FORMER_HEAD),
        pixel_decoder=dict(
            type=f'mmdet.{pixel.take("type")}',
            **pixel.keep('num_outs norm_cfg act_cfg'),
            encoder=_layers(pixel.section('encoder'), _ENCODER),
            positional_encoding=_encoding(pixel),
        ),
        positional_encoding=_encoding(head),
        transformer_decoder=_layers(head.section('transformer_decoder'), _MASKED_DECODER),
        **{key: {**loss, 'type': f'mmdet.{loss["type"]}'} for key, loss in losses.items()},
        train_cfg=dict(
            **train.keep('num_points oversample_ratio importance_sample_ratio'),
            assigner=_matching(train, 'mmdet.'),
            sampler=dict(type=f'mmdet.{train.section("sampler").take("type")}'),
        ),
    )
    test_cfg = old.section('test_cfg').keep('mode crop_size stride')
    return dict(decode_head=new, train_cfg={}, test_cfg=test_cfg)
