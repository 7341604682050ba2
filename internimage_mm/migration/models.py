"""Model settings: backbone, R-CNN and encoder-decoder models as they are, DINO and Mask2Former in
the places where today's libraries keep their parts."""

from typing import Any

from ..backbones import InternImage
from ..backbones.presets import ARCHITECTURES, architecture
from .report import Report, Settings, shorten

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
_RCNN = ('CascadeRCNN', 'FasterRCNN', 'MaskRCNN', 'RetinaNet', 'RPN', 'FastRCNN')
_PLAIN = {
    'mmdet': (*_RCNN, 'ATSS', 'FCOS', 'GFL'),
    'mmseg': ('EncoderDecoder', 'CascadeEncoderDecoder'),
}
_MASK2FORMER = ('EncoderDecoderMask2Former', 'EncoderDecoderMask2FormerAug')


def migrate_model(old: Settings, preprocessor: dict, scope: str, report: Report) -> dict:
    """Translate ``model``; it is closed.

    Args:
        old: ``model`` of the old config.
        preprocessor: The new ``data_preprocessor``.
        scope: ``'mmdet'`` or ``'mmseg'``.
        report: Takes what has no counterpart.
    """
    kind = old.take('type')
    model: dict[str, Any] = {
        'type': CLASSES.get(kind, kind),
        'data_preprocessor': preprocessor,
        'backbone': migrate_backbone(old.section('backbone'), report),
    }
    if pretrained := old.take('pretrained'):
        if model['backbone']['type'] in ('InternImage', 'CBInternImage'):
            report.note(
                'model.pretrained', f'{pretrained} is left out: InternImage never looked at it'
            )
        else:
            init = {'type': 'Pretrained', 'checkpoint': pretrained}
            model['backbone'].setdefault('init_cfg', init)
    if (init := old.take('init_cfg')) is not None:
        model['init_cfg'] = init
    if 'neck' in old and (neck := old.take('neck')) is not None:
        model['neck'] = _neck(neck, report)
    if kind in ('DINO', 'CBDINO'):
        model.update(_dino(kind, old, report))
    elif kind in _MASK2FORMER:
        model.update(_mask2former(kind, old, report))
    else:
        if kind not in _PLAIN[scope]:
            report.problem(
                'model.type', f'{kind} is not known here; its settings are kept as they are'
            )
        # Compared file by file: these models kept names and arguments of all their parts.
        model.update(old.take_all())
        for name, head in _custom_heads(model):
            report.problem(f'model.{name}', f'the class {head} must be ported')
    old.close()
    return model


def _custom_heads(model: dict) -> list[tuple[str, str]]:
    """Heads that only exist in the official repository and that no rule has translated."""
    old_only = {'Mask2FormerHead', 'MaskFormerHead', 'DeformableDETRHead', 'DETRHead'}
    return [
        (name, part['type'])
        for name, part in model.items()
        if isinstance(part, dict) and part.get('type') in old_only
    ]


def migrate_backbone(old: Settings, report: Report) -> dict:
    """An InternImage by its preset, if it is one; every argument kept its meaning."""
    kind = old.take('type')
    settings = old.take_all()
    if settings.get('init_cfg', 0) is None:
        del settings['init_cfg']
    if kind not in ('InternImage', 'CBInternImage'):
        report.note('model.backbone', f'{kind} is kept as it is')
        return {'type': kind, **settings}
    if settings.get('core_op') == 'DCNv3':
        del settings['core_op']
    full = {**InternImage.DEFAULTS, **settings}
    structure = set().union(*ARCHITECTURES.values())
    for name in ARCHITECTURES:
        preset = {**InternImage.DEFAULTS, **architecture(name)}
        if all(full[key] == preset[key] for key in structure):
            # What the preset says need not be repeated.
            own = {k: v for k, v in settings.items() if k not in structure}
            own = {k: v for k, v in own.items() if v != InternImage.DEFAULTS.get(k, _ABSENT)}
            written = {'drop_path_rate': full['drop_path_rate'], 'with_cp': full['with_cp']}
            return {'type': kind, 'arch': name, **written, **own}
    return {'type': kind, **settings}


_ABSENT = object()


def backbone_depths(backbone: dict) -> list[int]:
    """Blocks of each level of a translated backbone; empty if it is no InternImage."""
    preset = architecture(backbone['arch']) if 'arch' in backbone else {}
    return list(backbone.get('depths', preset.get('depths', ())))


def _neck(necks: dict | list[dict], report: Report) -> dict:
    if isinstance(necks, list) and len(necks) != 1:
        report.problem('model.neck', f'a list of {len(necks)} necks; mmdet 3 takes one')
    neck = necks[0] if isinstance(necks, list) else necks
    return {**neck, 'type': CLASSES.get(neck['type'], neck['type'])}


def _ffn(layers: Settings, report: Report) -> dict:
    """``ffn_cfgs`` and the older arguments beside it -> ``ffn_cfg``."""
    old = layers.section('ffn_cfgs')
    kind = old.take('type', 'FFN')
    if kind == 'EfficientFFN':
        old.take('split')
        report.note(old.path, 'EfficientFFN is a plain FFN here; its checkpoints are converted')
    elif kind != 'FFN':
        report.problem(old.path, f'no rule for {kind}')
    # mmcv 1.x swallowed them.
    old.take('use_checkpoint')
    old.take('with_cp')
    channels = layers.take('feedforward_channels')
    drop = layers.take('ffn_dropout')
    new = old.take_existing(
        'embed_dims', 'feedforward_channels', 'num_fcs', 'ffn_drop', 'act_cfg', 'add_identity'
    )
    old.ignore('dropout_layer', None, why='there is none')
    if channels is not None:
        new.setdefault('feedforward_channels', channels)
    if drop is not None:
        new.setdefault('ffn_drop', drop)
    old.close()
    return new


def _attention(config: dict, path: str, report: Report) -> dict:
    old = Settings(config, path, report)
    kind = old.take('type')
    if kind not in ('MultiheadAttention', 'MultiScaleDeformableAttention'):
        report.problem(path, f'no rule for the attention {kind}')
    new = old.take_existing(
        'embed_dims',
        'num_heads',
        'num_levels',
        'num_points',
        'dropout',
        'attn_drop',
        'proj_drop',
        'dropout_layer',
        'im2col_step',
        'norm_cfg',
        'init_cfg',
    )
    # Today's layers are batch first throughout, and say so themselves.
    old.take('batch_first')
    old.close()
    return new


def _order(layers: Settings, expected: tuple[str, ...]) -> None:
    order = tuple(layers.take('operation_order', expected))
    if order != expected:
        layers.report.problem(
            f'{layers.path}.operation_order', f"{order}; today's layers compute {expected}"
        )


def _dino(kind: str, old: Settings, report: Report) -> dict:
    """DINO: the transformer moved from the head into the detector."""
    head = old.section('bbox_head')
    transformer = head.section('transformer')
    if (form := transformer.take('type', 'DinoTransformer')) != 'DinoTransformer':
        report.problem(f'{transformer.path}.type', f'no rule for {form}')

    encoder = transformer.section('encoder')
    encoder.take('type')
    layers = encoder.section('transformerlayers')
    layers.take('type')
    attention = _attention(layers.take('attn_cfgs'), f'{layers.path}.attn_cfgs', report)
    attention.setdefault('num_levels', 4)  # mmcv's default then and now
    dims = attention.get('embed_dims', 256)
    encoder_cfg = {
        'num_layers': encoder.take('num_layers'),
        'layer_cfg': {
            'self_attn_cfg': attention,
            'ffn_cfg': {'embed_dims': dims, **_ffn(layers, report)},
        },
    }
    _order(layers, ('self_attn', 'norm', 'ffn', 'norm'))
    layers.close()
    encoder.close()

    decoder = transformer.section('decoder')
    decoder.take('type')
    layers = decoder.section('transformerlayers')
    layers.take('type')
    self_attention, cross_attention = (
        _attention(config, f'{layers.path}.attn_cfgs[{i}]', report)
        for i, config in enumerate(layers.take('attn_cfgs'))
    )
    cross_attention.setdefault('num_levels', 4)
    decoder_cfg = {
        'num_layers': decoder.take('num_layers'),
        'return_intermediate': decoder.take('return_intermediate', True),
        'layer_cfg': {
            'self_attn_cfg': self_attention,
            'cross_attn_cfg': cross_attention,
            'ffn_cfg': {'embed_dims': dims, **_ffn(layers, report)},
        },
        'post_norm_cfg': None,
    }
    _order(layers, ('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'))
    layers.close()
    decoder.close()
    proposals = transformer.take('two_stage_num_proposals')
    transformer.take('num_feature_levels')
    transformer.close()

    queries = head.take('num_query')
    if proposals not in (None, queries):
        report.problem(
            'model.bbox_head.transformer.two_stage_num_proposals',
            f'{proposals} with {queries} queries; they are one number now',
        )
    position = {key: v for key, v in head.take('positional_encoding').items() if key != 'type'}
    noise = head.section('dn_cfg')
    noise.take('type')
    scale = noise.section('noise_scale')
    denoising = {
        'label_noise_scale': scale.take('label', 0.5),
        'box_noise_scale': scale.take('box', 0.4),
        'group_cfg': noise.take('group_cfg'),
    }
    scale.close()
    noise.close()
    head.take('in_channels')  # the necks give the channels
    new_head: dict[str, Any] = {
        'type': _known_class(head, 'DINOHead', 'CBDINOHead'),
        **head.take_existing('num_classes', 'sync_cls_avg_factor'),
    }
    two_stage = {
        'with_box_refine': head.take('with_box_refine', False),
        'as_two_stage': head.take('as_two_stage', False),
    }
    new_head.update(head.take_existing('loss_cls', 'loss_bbox', 'loss_iou', 'cb_first_weight'))
    head.close()

    train = old.section('train_cfg')
    train_cfg = {'assigner': _matching(train.take('assigner'), report)}
    # Never read by the official code either.
    train.ignore('snip_cfg', why='the official code never read it')
    train.ignore('fed_loss_cfg', why='the official code never read it')
    train.close()
    new = {
        'num_queries': queries,
        **two_stage,
        'encoder': encoder_cfg,
        'decoder': decoder_cfg,
        'positional_encoding': position,
        'bbox_head': new_head,
        'dn_cfg': denoising,
        'train_cfg': train_cfg,
        'test_cfg': old.take('test_cfg'),
    }
    if kind == 'CBDINO':
        old.ignore('loss_weights', why='the official code never read it')
        if (rule := old.take('rule')) is not None:
            report.problem('model.rule', f'no rule for the freezing preset {rule!r}')
    return new


def _known_class(part: Settings, *known: str) -> str:
    """What the class of ``part`` is called here; reported if it is none of ``known``."""
    kind = part.take('type')
    if kind not in known:
        part.report.problem(f'{part.path}.type', f'{kind} must be ported')
    return CLASSES.get(kind, kind)


def _matching(assigner: dict, report: Report, prefix: str = '') -> dict:
    """Three named costs -> ``match_costs``."""
    old = Settings(assigner, 'model.train_cfg.assigner', report)
    kind = old.take('type')
    if kind not in ('HungarianAssigner', 'MaskHungarianAssigner'):
        report.problem(f'{old.path}.type', f'no rule for {kind}')
    names = ('cls_cost', 'mask_cost', 'dice_cost', 'reg_cost', 'iou_cost')
    costs = [old.take(name) for name in names if name in old]
    old.close()
    return {
        'type': f'{prefix}HungarianAssigner',
        'match_costs': [{**cost, 'type': prefix + cost['type']} for cost in costs],
    }


def _mask2former(kind: str, old: Settings, report: Report) -> dict:
    """Mask2Former: layers by name, and the training settings in the head."""
    if kind.endswith('Aug'):
        report.problem('model.type', f'{kind} crops the stitched map of a slide test to the image')
    if (auxiliary := old.take('auxiliary_head')) is not None:
        report.problem('model.auxiliary_head', f'no rule for {shorten(auxiliary)}')
    head = old.section('decode_head')
    new: dict[str, Any] = {'type': _known_class(head, 'Mask2FormerHead')}
    new.update(head.take_existing('in_channels'))
    head.ignore('in_index', [0, 1, 2, 3], why='mmseg takes all levels')
    new.update(head.take_existing('strides'))
    new.update(head.take_existing('feat_channels', 'out_channels', 'num_classes', 'num_queries'))
    new.update(head.take_existing('num_transformer_feat_level', 'enforce_decoder_input_project'))
    new['align_corners'] = head.take('align_corners', False)
    # num_classes rules.
    head.take('num_things_classes')
    head.take('num_stuff_classes')

    pixel = head.section('pixel_decoder')
    pixel_type = pixel.take('type')
    encoder = pixel.section('encoder')
    encoder.take('type')
    layers = encoder.section('transformerlayers')
    layers.take('type')
    attention = _attention(layers.take('attn_cfgs'), f'{layers.path}.attn_cfgs', report)
    pixel_encoder = {
        'num_layers': encoder.take('num_layers'),
        'layer_cfg': {'self_attn_cfg': attention, 'ffn_cfg': _ffn(layers, report)},
    }
    _order(layers, ('self_attn', 'norm', 'ffn', 'norm'))
    encoder.ignore('init_cfg', None, why='')
    pixel.ignore('init_cfg', None, why='')
    layers.close()
    encoder.close()
    new['pixel_decoder'] = {
        'type': f'mmdet.{pixel_type}',
        **pixel.take_existing('num_outs', 'norm_cfg', 'act_cfg'),
        'encoder': pixel_encoder,
        'positional_encoding': _encoding(pixel),
    }
    pixel.close()
    new['positional_encoding'] = _encoding(head)

    decoder = head.section('transformer_decoder')
    decoder.take('type')
    layers = decoder.section('transformerlayers')
    layers.take('type')
    attention = _attention(layers.take('attn_cfgs'), f'{layers.path}.attn_cfgs', report)
    new['transformer_decoder'] = {
        'num_layers': decoder.take('num_layers'),
        'return_intermediate': decoder.take('return_intermediate', True),
        'layer_cfg': {
            'self_attn_cfg': attention,
            'cross_attn_cfg': dict(attention),
            'ffn_cfg': _ffn(layers, report),
        },
    }
    _order(layers, ('cross_attn', 'norm', 'self_attn', 'norm', 'ffn', 'norm'))
    decoder.ignore('init_cfg', None, why='')
    layers.close()
    decoder.close()
    for loss in ('loss_cls', 'loss_mask', 'loss_dice'):
        value = head.take(loss)
        new[loss] = {**value, 'type': f'mmdet.{value["type"]}'}
    head.close()

    train = old.section('train_cfg')
    new['train_cfg'] = {
        **train.take_existing('num_points', 'oversample_ratio', 'importance_sample_ratio'),
        'assigner': _matching(train.take('assigner'), report, 'mmdet.'),
    }
    sampler = train.section('sampler')
    new['train_cfg']['sampler'] = {'type': f'mmdet.{sampler.take("type")}'}
    sampler.close()
    train.close()
    test = old.section('test_cfg')
    # Settings of panoptic and instance segmentation.
    for key in ('panoptic_on', 'semantic_on', 'instance_on', 'max_per_image', 'iou_thr'):
        test.take(key)
    test.take('filter_low_score')
    test_cfg = test.take_existing('mode', 'crop_size', 'stride')
    test.close()
    return {'decode_head': new, 'train_cfg': {}, 'test_cfg': test_cfg}


def _encoding(part: Settings) -> dict:
    encoding = Settings(part.take('positional_encoding'), part.path, part.report)
    encoding.take('type')
    return encoding.take_all()
