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
    return _mask_rcnn(cfg) if kind == 'Mask R-CNN' else _cascade(cfg)


def _proposals(settings):
    assert settings.nms.type == 'nms'
    return {
        'nms_pre': settings.nms_pre,
        'max_per_img': settings.max_per_img,
        'nms_iou': settings.nms.iou_threshold,
    }


def _rpn(cfg):
    train = cfg.model.train_cfg
    return {
        'train': {
            'pos_iou': train.rpn.assigner.pos_iou_thr,
            'neg_iou': train.rpn.assigner.neg_iou_thr,
            'num': train.rpn.sampler.num,
            **_proposals(train.rpn_proposal),
        },
        'test': _proposals(cfg.model.test_cfg.rpn),
    }


def _rcnn_test(cfg):
    test = cfg.model.test_cfg.rcnn
    return {
        'score_thr': test.score_thr,
        'nms': {'nms': 'hard'}[test.nms.type],
        'nms_iou': test.nms.iou_threshold,
        'max_per_img': test.max_per_img,
        'mask_thr_binary': test.get('mask_thr_binary'),
    }


def _mask_rcnn(cfg):
    rpn, roi, train = cfg.model.rpn_head, cfg.model.roi_head, cfg.model.train_cfg
    assert roi.mask_head.num_classes == roi.bbox_head.num_classes
    assert train.rcnn.assigner.neg_iou_thr == train.rcnn.assigner.pos_iou_thr
    described = _rpn(cfg)
    described['train']['pos_fraction'] = train.rpn.sampler.pos_fraction
    return {
        'num_classes': roi.bbox_head.num_classes,
        'rpn': {
            'anchor_scales': rpn.anchor_generator.scales,
            'ratios': rpn.anchor_generator.ratios,
            'strides': rpn.anchor_generator.strides,
            'loss_bbox': rpn.loss_bbox.type,
            **described,
        },
        'rcnn': {
            'bbox_head': roi.bbox_head.type,
            'reg_class_agnostic': roi.bbox_head.reg_class_agnostic,
            'bbox_stds': roi.bbox_head.bbox_coder.target_stds,
            'loss_bbox': roi.bbox_head.loss_bbox.type,
            'train': {
                'iou_thr': train.rcnn.assigner.pos_iou_thr,
                'match_low_quality': train.rcnn.assigner.match_low_quality,
                'num': train.rcnn.sampler.num,
                'pos_fraction': train.rcnn.sampler.pos_fraction,
                'mask_size': train.rcnn.mask_size,
            },
            'test': _rcnn_test(cfg),
        },
    }


def _loss(loss):
    """Loss and weight in the notation of the table."""
    beta = ''
    if loss.type == 'SmoothL1Loss':
        beta = ' beta=1/9' if abs(loss.beta - 1 / 9) < 1e-9 else f' beta={loss.beta}'
    name = loss.type.replace('CrossEntropyLoss', 'CrossEntropy')
    return f'{name}{beta}', f'w={float(loss.loss_weight)}'


def _one(values):
    """The value that all stages share."""
    first, *others = values
    assert all(other == first for other in others), values
    return first


def _cascade(cfg):
    rpn, roi, train = cfg.model.rpn_head, cfg.model.roi_head, cfg.model.train_cfg
    described = _rpn(cfg)
    described['train']['allowed_border'] = train.rpn.allowed_border
    name, weight = _loss(rpn.loss_bbox)
    assert weight == 'w=1.0'
    for stage in train.rcnn:
        assert stage.assigner.pos_iou_thr == stage.assigner.neg_iou_thr
        assert stage.assigner.min_pos_iou == stage.assigner.pos_iou_thr
    stages = roi.bbox_head
    assert len(stages) == roi.num_stages == len(train.rcnn)
    box = {}
    for key in (
        'type',
        'num_shared_convs',
        'num_shared_fcs',
        'conv_out_channels',
        'fc_out_channels',
        'reg_class_agnostic',
        'reg_decoded_bbox',
    ):
        value = _one([stage.get(key, MISSING) for stage in stages])
        if value is not MISSING:
            box[key] = value
    if 'norm_cfg' in stages[0]:
        box['norm'] = _one([stage.norm_cfg.type for stage in stages])
    box['loss_cls'] = ' '.join(_loss(_one([stage.loss_cls for stage in stages])))
    box['loss_bbox'] = ' '.join(_loss(_one([stage.loss_bbox for stage in stages])))
    mask = roi.get('mask_head')
    if mask is not None:
        # One for all: mmdet makes a copy of it for every stage.
        assert mask.type == 'FCNMaskHead' and mask.num_classes == stages[0].num_classes
    return {
        'num_classes': _one([stage.num_classes for stage in stages]),
        'bbox_head': box,
        'mask_head': mask and f'stock FCNMaskHead x{roi.num_stages}',
        'rpn': {**described, 'loss_bbox': name},
        'rcnn': {
            'stage_loss_weights': roi.stage_loss_weights,
            'stage_iou_thr': [stage.assigner.pos_iou_thr for stage in train.rcnn],
            'bbox_stds': [stage.bbox_coder.target_stds for stage in stages],
            'match_low_quality': _one([s.assigner.match_low_quality for s in train.rcnn]),
            'test': _rcnn_test(cfg),
        },
    }


MISSING = object()


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


def _position(encoding):
    return {
        'num_feats': encoding.num_feats,
        'temperature': encoding.temperature,
        'normalize': encoding.normalize,
        'offset': encoding.offset,
    }


def _all_layers(layers, describe):
    return _one([describe(layer) for layer in layers])


def _dropout(*modules):
    """The one dropout rate of all these modules and what they contain."""
    rates = {m.p for module in modules for m in module.modules() if type(m).__name__ == 'Dropout'}
    return _one(sorted(rates))


def _ffn(layer):
    assert type(layer.ffn).__name__ == 'FFN'
    return {'ffn_type': 'FFN', 'ffn_channels': layer.ffn.feedforward_channels}


def _encoder_layer(layer):
    attention = layer.self_attn
    return {
        **_ffn(layer),
        'msda_heads': attention.num_heads,
        'msda_levels': attention.num_levels,
        'msda_points': attention.num_points,
        'dropout': _dropout(layer),
    }


def _decoder_layer(layer):
    return {
        **_ffn(layer),
        'self_attn_heads': layer.self_attn.num_heads,
        'msda_levels': layer.cross_attn.num_levels,
        'msda_points': layer.cross_attn.num_points,
        'dropout': _dropout(layer),
    }


def _weighted(loss, *keys):
    described = {'type': type(loss).__name__, 'weight': loss.loss_weight}
    return {**described, **{key: getattr(loss, key) for key in keys}}


def _dino(cfg, model):
    head, noise = model.bbox_head, model.dn_query_generator
    focal, l1, iou = head.assigner.match_costs
    assert type(focal).__name__ == 'FocalLossCost' and type(l1).__name__ == 'BBoxL1Cost'
    assert l1.box_format == 'xywh' and iou.iou_mode == 'giou'
    assert head.loss_cls.use_sigmoid
    described = {
        'type': official_name(type(head).__name__),
        'num_queries': model.num_queries,
        # One number now: the proposals become the queries.
        'two_stage_num_proposals': model.num_queries,
        'num_classes': head.num_classes,
        'embed_dims': model.embed_dims,
        'as_two_stage': model.as_two_stage,
        'with_box_refine': model.with_box_refine,
        'sync_cls_avg_factor': head.sync_cls_avg_factor,
        'encoder': {
            'num_layers': len(model.encoder.layers),
            **_all_layers(model.encoder.layers, _encoder_layer),
        },
        'decoder': {
            'num_layers': len(model.decoder.layers),
            **_all_layers(model.decoder.layers, _decoder_layer),
            'return_intermediate': model.decoder.return_intermediate,
        },
        'positional_encoding': _position(model.positional_encoding),
        'denoising': {
            'label_noise': noise.label_noise_scale,
            'box_noise': noise.box_noise_scale,
            'dynamic': noise.dynamic_dn_groups,
            'num_dn_queries': noise.num_dn_queries,
        },
        'loss_cls': _weighted(head.loss_cls, 'gamma', 'alpha'),
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
    head = model.decode_head
    pixel = head.pixel_decoder
    settings = cfg.model.decode_head
    cost_cls, cost_mask, cost_dice = settings.train_cfg.assigner.match_costs
    assert cost_cls.type == 'mmdet.ClassificationCost' and cost_dice.type == 'mmdet.DiceCost'
    assert cost_mask.type == 'mmdet.CrossEntropyLossCost' and cost_mask.use_sigmoid
    assert cost_dice.eps == 1.0 and cost_dice.pred_act
    *of_classes, of_none = head.loss_cls.class_weight
    assert of_classes == [1.0] * head.num_classes
    dice = head.loss_dice
    assert dice.naive_dice and dice.activate and dice.use_sigmoid

    def pixel_layer(layer):
        attention = layer.self_attn
        return {
            'embed_dims': attention.embed_dims,
            'num_heads': attention.num_heads,
            'num_levels': attention.num_levels,
            'num_points': attention.num_points,
            'ffn_channels': layer.ffn.feedforward_channels,
        }

    def decoder_layer(layer):
        assert layer.self_attn.num_heads == layer.cross_attn.num_heads
        return {
            'embed_dims': layer.self_attn.embed_dims,
            'num_heads': layer.self_attn.num_heads,
            'ffn_channels': layer.ffn.feedforward_channels,
        }

    assert type(head.transformer_decoder.layers[0]).__name__ == 'Mask2FormerTransformerDecoderLayer'
    for module in (pixel.encoder, head.transformer_decoder):
        assert _dropout(module) == 0.0
    return {
        'decode_head': {
            'type': official_name(settings.type),
            'in_channels': settings.in_channels,
            'feat_channels': settings.feat_channels,
            'out_channels': settings.out_channels,
            'num_queries': head.num_queries,
            'num_transformer_feat_level': head.num_transformer_feat_level,
            'pixel_decoder': {
                'type': type(pixel).__name__,
                'num_layers': len(pixel.encoder.layers),
                **_all_layers(pixel.encoder.layers, pixel_layer),
                'norm': f'{settings.pixel_decoder.norm_cfg.type}'
                f'{settings.pixel_decoder.norm_cfg.num_groups}',
                'pos_num_feats': pixel.postional_encoding.num_feats,
            },
            'transformer_decoder': {
                'num_layers': len(head.transformer_decoder.layers),
                **_all_layers(head.transformer_decoder.layers, decoder_layer),
                # What Mask2FormerTransformerDecoderLayer.forward does.
                'order': 'cross_attn,norm,self_attn,norm,ffn,norm',
                'pos_num_feats': head.decoder_positional_encoding.num_feats,
            },
            'loss_cls': {
                'type': type(head.loss_cls).__name__.removesuffix('Loss'),
                'weight': head.loss_cls.loss_weight,
                'no_object_weight': of_none,
            },
            'loss_mask': {
                'type': {True: 'BCE'}[head.loss_mask.use_sigmoid],
                'weight': head.loss_mask.loss_weight,
            },
            'loss_dice': {'type': 'naive Dice', 'eps': dice.eps, 'weight': dice.loss_weight},
            'train': {
                'num_points': head.num_points,
                'oversample_ratio': head.oversample_ratio,
                'importance_sample_ratio': head.importance_sample_ratio,
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
