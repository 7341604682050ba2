"""Backbone, neck and heads of a detector or segmentor in the terms of the official table.

Heads with many defaults (DINO, Mask2Former) are described from the built model, so that what a
config leaves to a default is compared as well.
"""

from internimage_mm.backbones import InternImage
from internimage_mm.backbones.presets import ALIASES, architecture
from internimage_mm.migration.models import CLASSES

_OFFICIAL_NAMES = {ours: official for official, ours in CLASSES.items()}
LETTERS = {name: letter.upper() for letter, name in ALIASES.items()}
_CB_DEFAULTS = {'cb_zero_init': True, 'cb_del_stages': 1}


def official_name(kind):
    """What a class of ours is called in the official repository."""
    kind = kind.removeprefix('internimage_mm.').removeprefix('mmdet.')
    return _OFFICIAL_NAMES.get(kind, kind)


def framework(cfg):
    model = cfg.model
    if 'decode_head' in model:
        kind = official_name(model.decode_head.type)
        return {
            'Mask2FormerHead': 'Mask2Former',
            'SegformerHead': 'SegFormer head',
            'UPerHead': 'UperNet',
        }[kind]
    with_mask = 'mask_head' in model.get('roi_head', {})
    return {
        ('MaskRCNN', True): 'Mask R-CNN',
        ('CascadeRCNN', True): 'Cascade Mask R-CNN',
        ('CascadeRCNN', False): 'Cascade R-CNN (box only)',
        ('DINO', False): 'DINO',
        ('CBDINO', False): 'CB-DINO',
    }[official_name(model.type), with_mask]


def task(cfg):
    if 'decode_head' in cfg.model:
        return 'semantic segmentation'
    if 'mask_head' in cfg.model.get('roi_head', {}):
        return 'instance segmentation'
    return 'object detection'


def backbone(cfg, expected):
    """Every constructor argument that the table has, given or by default."""
    given = dict(cfg.model.backbone)
    given.pop('init_cfg', None)
    name = given.pop('arch')
    name = ALIASES.get(name, name)
    preset = architecture(name)
    settings = {**InternImage.DEFAULTS, **preset, **given, 'variant': LETTERS[name]}
    if given['type'] == 'CBInternImage':
        settings = {**_CB_DEFAULTS, **settings}
    # Arguments of ours that the table does not list must be at their default.
    other = set(given) - set(expected)
    assert all(given[key] == InternImage.DEFAULTS[key] for key in other), other
    return {key: settings[key] for key in expected if key in settings}


def pretrained(cfg):
    init = cfg.model.backbone.get('init_cfg')
    assert init is None or init.type == 'Pretrained'
    return init and init.checkpoint


def neck(cfg):
    if 'neck' not in cfg.model:
        return None
    settings = dict(cfg.model.neck)
    settings['type'] = official_name(settings['type'])
    if settings['type'] == 'FPN':
        return settings
    norm = settings.pop('norm_cfg')
    assert norm['type'] == 'GN'
    settings['norm'] = f'GN{norm["num_groups"]}'
    act = settings.pop('act_cfg')
    settings['act'] = act and act['type']
    # ChannelMapper puts 3x3 convolutions of stride 2 behind its last input for further outputs.
    assert settings['num_outs'] == len(settings['in_channels']) + 1
    settings['extra_level'] = '3x3 stride-2 conv on the last backbone output'
    return settings


def heads(cfg, model):
    kind = framework(cfg)
    if kind in ('DINO', 'CB-DINO'):
        return _dino(cfg, model)
    if kind == 'Mask2Former':
        return _mask2former(cfg, model)
    if kind in ('UperNet', 'SegFormer head'):
        return _segmentation(cfg)
    return {} if kind == 'Mask R-CNN' else _cascade(cfg)  # test_mask_rcnn_is_that_of_mmdet


def _fields(part, names):
    """Attributes of a module or keys of a config; ``'term=name'`` where the table says ``term``."""
    pairs = [name.partition('=') for name in names.split()]
    return {term: getattr(part, name or term) for term, _, name in pairs}


def _one(values):
    """The value that all stages or layers share."""
    first, *others = values
    assert all(other == first for other in others), values
    return first


def _loss(loss):
    """Loss and weight in the notation of the table."""
    beta = ''
    if loss.type == 'SmoothL1Loss':
        beta = ' beta=1/9' if abs(loss.beta - 1 / 9) < 1e-9 else f' beta={loss.beta}'
    name = loss.type.replace('CrossEntropyLoss', 'CrossEntropy')
    return f'{name}{beta}', f'w={float(loss.loss_weight)}'


def _proposals(settings):
    assert settings.nms.type == 'nms'
    return {**_fields(settings, 'nms_pre max_per_img'), 'nms_iou': settings.nms.iou_threshold}


def _rpn(cfg):
    train = cfg.model.train_cfg
    return {
        'train': {
            **_fields(train.rpn.assigner, 'pos_iou=pos_iou_thr neg_iou=neg_iou_thr'),
            **_fields(train.rpn.sampler, 'num'),
            **_fields(train.rpn, 'allowed_border'),
            **_proposals(train.rpn_proposal),
        },
        'test': _proposals(cfg.model.test_cfg.rpn),
    }


def _cascade(cfg):
    rpn, roi, train = cfg.model.rpn_head, cfg.model.roi_head, cfg.model.train_cfg
    name, weight = _loss(rpn.loss_bbox)
    assert weight == 'w=1.0'
    for stage in train.rcnn:
        assert stage.assigner.pos_iou_thr == stage.assigner.neg_iou_thr
        assert stage.assigner.min_pos_iou == stage.assigner.pos_iou_thr
    stages, test = roi.bbox_head, cfg.model.test_cfg.rcnn
    assert len(stages) == roi.num_stages == len(train.rcnn)
    settings = (
        'type num_shared_convs num_shared_fcs conv_out_channels fc_out_channels '
        'reg_class_agnostic reg_decoded_bbox'
    )
    box = {key: _one([s.get(key) for s in stages]) for key in settings.split() if key in stages[0]}
    if 'norm_cfg' in stages[0]:
        box['norm'] = _one([stage.norm_cfg.type for stage in stages])
    for loss in ('loss_cls', 'loss_bbox'):
        box[loss] = ' '.join(_loss(_one([stage[loss] for stage in stages])))
    mask = roi.get('mask_head')
    if mask is not None:
        # One for all: mmdet makes a copy of it for every stage.
        assert mask.type == 'FCNMaskHead' and mask.num_classes == stages[0].num_classes
    return {
        'num_classes': _one([stage.num_classes for stage in stages]),
        'bbox_head': box,
        'mask_head': mask and f'stock FCNMaskHead x{roi.num_stages}',
        'rpn': {**_rpn(cfg), 'loss_bbox': name},
        'rcnn': {
            'stage_loss_weights': roi.stage_loss_weights,
            'stage_iou_thr': [stage.assigner.pos_iou_thr for stage in train.rcnn],
            'bbox_stds': [stage.bbox_coder.target_stds for stage in stages],
            'match_low_quality': _one([s.assigner.match_low_quality for s in train.rcnn]),
            'test': {
                **_fields(test, 'score_thr max_per_img'),
                'nms': {'nms': 'hard'}[test.nms.type],
                'nms_iou': test.nms.iou_threshold,
                'mask_thr_binary': test.get('mask_thr_binary'),
            },
        },
    }


def _segmentation(cfg):
    described = {'auxiliary_head': None}
    for name in ('decode_head', 'auxiliary_head'):
        if cfg.model.get(name) is None:
            continue
        head = dict(cfg.model[name])
        loss = head.pop('loss_decode')
        assert loss.type == 'CrossEntropyLoss' and not loss.use_sigmoid
        head['loss'] = ' '.join(_loss(loss))
        norm = head.pop('norm_cfg')
        assert norm == {'type': 'SyncBN', 'requires_grad': True}
        head['norm'] = norm.type
        if name == 'decode_head':
            assert list(head.pop('in_index')) == [0, 1, 2, 3]
        described[name] = head
    return described


def _layers(coder, describe):
    """How many layers, and what all of them have in common."""
    return {'num_layers': len(coder.layers), **_one([describe(layer) for layer in coder.layers])}


def _dropout(*modules):
    """The one dropout rate of all these modules and what they contain."""
    rates = {m.p for module in modules for m in module.modules() if type(m).__name__ == 'Dropout'}
    return _one(sorted(rates))


def _dino_layer(layer):
    assert type(layer.ffn).__name__ == 'FFN'
    described = {'ffn_type': 'FFN', 'ffn_channels': layer.ffn.feedforward_channels}
    attention = 'msda_levels=num_levels msda_points=num_points'
    if hasattr(layer, 'cross_attn'):
        described.update(_fields(layer.self_attn, 'self_attn_heads=num_heads'))
        described.update(_fields(layer.cross_attn, attention))
    else:
        described.update(_fields(layer.self_attn, f'msda_heads=num_heads {attention}'))
    return {**described, 'dropout': _dropout(layer)}


def _weighted(loss, further=''):
    return {'type': type(loss).__name__, **_fields(loss, f'weight=loss_weight {further}')}


def _dino(cfg, model):
    head, noise = model.bbox_head, model.dn_query_generator
    focal, l1, iou = head.assigner.match_costs
    assert type(focal).__name__ == 'FocalLossCost' and type(l1).__name__ == 'BBoxL1Cost'
    assert l1.box_format == 'xywh' and iou.iou_mode == 'giou'
    assert head.loss_cls.use_sigmoid
    described = {
        'type': official_name(type(head).__name__),
        # The proposals become the queries: one number now.
        **_fields(model, 'num_queries two_stage_num_proposals=num_queries'),
        **_fields(model, 'embed_dims as_two_stage with_box_refine'),
        **_fields(head, 'num_classes sync_cls_avg_factor'),
        'encoder': _layers(model.encoder, _dino_layer),
        'decoder': {
            **_layers(model.decoder, _dino_layer),
            'return_intermediate': model.decoder.return_intermediate,
        },
        'positional_encoding': _fields(
            model.positional_encoding, 'num_feats temperature normalize offset'
        ),
        'denoising': {
            **_fields(noise, 'label_noise=label_noise_scale box_noise=box_noise_scale'),
            **_fields(noise, 'dynamic=dynamic_dn_groups num_dn_queries'),
        },
        'loss_cls': _weighted(head.loss_cls, 'gamma alpha'),
        'loss_bbox': _weighted(head.loss_bbox),
        'loss_iou': _weighted(head.loss_iou),
        'assigner_costs': {'focal': focal.weight, 'bbox_l1_cxcywh': l1.weight, 'giou': iou.weight},
        'test_max_per_img': cfg.model.test_cfg.max_per_img,
        'nms': cfg.model.test_cfg.get('nms'),
    }
    if framework(cfg) == 'CB-DINO':
        described['cb_first_weight'] = cfg.model.bbox_head.cb_first_weight
        described['requires_batch_size_per_gpu'] = cfg.train_dataloader.batch_size
    return described


def _mask2former(cfg, model):
    head, settings = model.decode_head, cfg.model.decode_head
    pixel, decoder, norm = (
        head.pixel_decoder,
        head.transformer_decoder,
        settings.pixel_decoder.norm_cfg,
    )
    cost_cls, cost_mask, cost_dice = settings.train_cfg.assigner.match_costs
    assert cost_cls.type == 'mmdet.ClassificationCost' and cost_dice.type == 'mmdet.DiceCost'
    assert cost_mask.type == 'mmdet.CrossEntropyLossCost' and cost_mask.use_sigmoid
    assert cost_dice.eps == 1.0 and cost_dice.pred_act
    *of_classes, of_none = head.loss_cls.class_weight
    assert of_classes == [1.0] * head.num_classes
    dice = head.loss_dice
    assert dice.naive_dice and dice.activate and dice.use_sigmoid
    for module in (pixel.encoder, decoder):
        assert _dropout(module) == 0.0
    # Whose forward has the order below.
    assert type(decoder.layers[0]).__name__ == 'Mask2FormerTransformerDecoderLayer'
    assert all(layer.self_attn.num_heads == layer.cross_attn.num_heads for layer in decoder.layers)

    def layer(attention):
        def describe(layer):
            ffn = _fields(layer.ffn, 'ffn_channels=feedforward_channels')
            return {**_fields(layer.self_attn, attention), **ffn}

        return describe

    return {
        'decode_head': {
            'type': official_name(settings.type),
            **_fields(settings, 'in_channels feat_channels out_channels'),
            **_fields(head, 'num_queries num_transformer_feat_level'),
            'pixel_decoder': {
                'type': type(pixel).__name__,
                **_layers(pixel.encoder, layer('embed_dims num_heads num_levels num_points')),
                'norm': f'{norm.type}{norm.num_groups}',
                'pos_num_feats': pixel.postional_encoding.num_feats,
            },
            'transformer_decoder': {
                **_layers(decoder, layer('embed_dims num_heads')),
                'order': 'cross_attn,norm,self_attn,norm,ffn,norm',
                'pos_num_feats': head.decoder_positional_encoding.num_feats,
            },
            'loss_cls': {
                **_weighted(head.loss_cls),
                'type': type(head.loss_cls).__name__.removesuffix('Loss'),
                'no_object_weight': of_none,
            },
            'loss_mask': {
                'type': {True: 'BCE'}[head.loss_mask.use_sigmoid],
                'weight': head.loss_mask.loss_weight,
            },
            'loss_dice': {'type': 'naive Dice', 'eps': dice.eps, 'weight': dice.loss_weight},
            'train': {
                **_fields(head, 'num_points oversample_ratio importance_sample_ratio'),
                'assigner_costs': {
                    'cls': cost_cls.weight,
                    'mask_bce': cost_mask.weight,
                    'dice': cost_dice.weight,
                },
            },
        },
        'num_classes': head.num_classes,
        'auxiliary_head': cfg.model.get('auxiliary_head'),
    }
