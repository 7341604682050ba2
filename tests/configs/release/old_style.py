"""Configs in the notation of the old stack, made from the table of official settings.

They hold what the table holds, in the keys of mmcv 1.x, mmdet 2.x and mmseg 0.x; parts of stock
models that the table only names come from mmdet's own configs, where they kept their keys.
"""

import copy
from pathlib import Path

import mmdet
from mmengine.config import Config

from .zoo import ENTRIES

_NORMALIZE = {
    'type': 'Normalize',
    'mean': [123.675, 116.28, 103.53],
    'std': [58.395, 57.12, 57.375],
    'to_rgb': True,
}
_STOCK = Path(mmdet.__file__).parent / '.mim/configs/_base_/models'
_SEG_ROOTS = {
    'ade20k': 'data/ADEChallengeData2016',
    'cityscapes': 'data/cityscapes/',
    'coco_stuff10k': 'data/coco_stuff10k',
    'coco_stuff164k': 'data/coco_stuff164k',
    'mapillary': 'data/Mapillary/',
    'nyu_depth_v2': 'data/nyu_depth_v2/',
    'pascal_context': 'data/VOCdevkit/VOC2010/',
}
_DET_ROOTS = {
    'coco': 'data/coco/',
    'crowd_human': 'data/CrowdHuman/',
    'lvis': 'data/lvis_v1/',
    'openimages': 'data/OpenImages/',
    'voc': 'data/VOCdevkit/',
}


def old_style(official):
    """The old-style config of an official config, as plain data."""
    entry = copy.deepcopy(ENTRIES[official])
    tree, _, dataset, _ = official.split('/')
    make = _detection if tree == 'detection' else _segmentation
    return {**make(entry, dataset), **_training(entry, tree)}


def _training(entry, tree):
    settings, schedule = entry['optimizer'], entry['schedule']
    keys = ('type', 'lr', 'weight_decay', 'paramwise_cfg')
    optimizer = {key: settings[key] for key in keys}
    if tree == 'segmentation':  # torch's default, which detection configs leave out
        optimizer['betas'] = tuple(settings['betas'])
    if settings['constructor'] != 'DefaultOptimizerConstructor':
        optimizer['constructor'] = settings['constructor']
    warmup = schedule['warmup']
    lr = {
        'policy': schedule['policy'],
        'warmup': warmup['type'],
        'warmup_iters': warmup['iters'],
        'warmup_ratio': warmup['start_ratio'],
    }
    if schedule['policy'] == 'step':
        lr['step'] = schedule['milestones']
    else:
        lr.update(power=schedule['power'], min_lr=schedule['min_lr'], by_epoch=False)
    by_epoch = 'max_epochs' in schedule
    length = {key: schedule[key] for key in ('max_epochs', 'max_iters') if key in schedule}
    runner = {'type': 'EpochBasedRunner' if by_epoch else 'IterBasedRunner', **length}
    interval = entry['evaluation'].get('interval', 1)
    if tree == 'segmentation':
        checkpoint = {'by_epoch': False, 'interval': 1000, 'max_keep_ckpts': 1}
    else:
        kept = 10 if '/lvis/' in entry['official_config'] else 3
        checkpoint = {'interval': 1 if by_epoch else interval, 'max_keep_ckpts': kept}
    hooks = [{'type': 'NumClassCheckHook'}] if tree == 'detection' else []
    if ema := entry['ema']:
        hooks = [{'type': ema['hook'], **{k: v for k, v in ema.items() if k != 'hook'}}]
    return {
        'optimizer': optimizer,
        'optimizer_config': {'grad_clip': settings['grad_clip']},
        'lr_config': lr,
        'runner': runner,
        'evaluation': entry['evaluation'],
        'checkpoint_config': checkpoint,
        'log_config': {
            'interval': 50,
            'hooks': [{'type': 'TextLoggerHook', 'by_epoch': by_epoch}],
        },
        'custom_hooks': hooks,
        'cudnn_benchmark': tree == 'segmentation',
        'dist_params': {'backend': 'nccl'},
        'log_level': 'INFO',
        'load_from': entry['load_from'],
        'resume_from': None,
        'workflow': [('train', 1)],
    }


def _backbone(entry):
    settings = {key: value for key, value in entry['backbone'].items() if key != 'variant'}
    for key in ('cb_zero_init', 'cb_del_stages'):
        settings.pop(key, None)
    checkpoint = entry['pretrained_backbone']
    init = checkpoint and {'type': 'Pretrained', 'checkpoint': checkpoint}
    return {**settings, 'init_cfg': init}


def _pipeline(terms, scope):
    """Terms of the table -> transforms of the old stack."""
    steps = [{'type': 'LoadImageFromFile'}]
    for term in terms:
        ((kind, value),) = term.items()
        steps.append(_transform(kind, value, scope))
    keys = ['img', 'gt_bboxes', 'gt_labels'] if scope == 'mmdet' else ['img', 'gt_semantic_seg']
    return [*steps, {'type': 'DefaultFormatBundle'}, {'type': 'Collect', 'keys': keys}]


def _transform(kind, value, scope):
    if kind == 'load_annotations':
        if scope == 'mmseg':
            return {'type': 'LoadAnnotations', **({k: v for k, v in value.items() if v})}
        names = {'bbox': 'with_bbox', 'mask': 'with_mask'}
        return {'type': 'LoadAnnotations', **{names.get(k, k): v for k, v in value.items()}}
    if kind == 'resize':
        return _resize(dict(value))
    if kind == 'random_crop':
        return {'type': 'RandomCrop', **value, 'crop_size': tuple(value['crop_size'])}
    if kind == 'random_hflip':
        return {'type': 'RandomFlip', 'flip_ratio' if scope == 'mmdet' else 'prob': value}
    if kind == 'one_of_branches':
        branches = [[_transform(*_item(term), scope) for term in branch] for branch in value]
        return {'type': 'AutoAugment', 'policies': branches}
    if kind == 'pad':
        return {'type': 'Pad', **value}
    simple = {
        'mapillary_65_to_cityscapes_19_labels': {'type': 'MapillaryHack'},
        'normalize': _NORMALIZE,
        'photometric_distortion': {'type': 'PhotoMetricDistortion'},
        'semseg_to_class_masks': {'type': 'ToMask'},
    }
    return simple[kind]


def _item(term):
    ((kind, value),) = term.items()
    return kind, value


def _resize(value):
    old = {'type': 'Resize', 'keep_ratio': value['keep_ratio']}
    if 'ratio_range' in value:
        old['ratio_range'] = tuple(value['ratio_range'])
    if 'scale' in value:
        return {**old, 'img_scale': tuple(value['scale'])}
    modes = {'one_of': 'value', 'uniform_range_short_edge': 'range'}
    scales = [tuple(scale) for scale in value['scales']]
    return {**old, 'img_scale': scales, 'multiscale_mode': modes[value['select']]}


def _test_pipeline(test, scope):
    inner = []
    for term in test['ops']:
        kind, value = _item(term)
        if kind == 'resize':
            inner += [{'type': 'Resize', 'keep_ratio': value['keep_ratio']}]
        elif kind == 'resize_to_multiple':
            inner += [{'type': 'ResizeToMultiple', 'size_divisor': value['size_divisor']}]
        else:
            inner += [_transform(kind, value, scope)]
    inner.insert(1, {'type': 'RandomFlip'})
    inner += [{'type': 'ImageToTensor', 'keys': ['img']}, {'type': 'Collect', 'keys': ['img']}]
    augment = {
        'type': 'MultiScaleFlipAug',
        'img_scale': tuple(test['test_scale']),
        'flip': test['flip'],
        'transforms': inner,
    }
    if 'img_ratios' in test:
        # Six digits in the table: the official ones are multiples of 1/896.
        augment['img_ratios'] = [round(ratio * 896) / 896 for ratio in test['img_ratios']]
    return [{'type': 'LoadImageFromFile'}, augment]


def _detection(entry, dataset):
    data, batch = entry['dataset'], entry['batch']
    root = _DET_ROOTS[dataset]
    train = {
        'type': data['train_type'],
        'ann_file': _files(data['train_ann']),
        'pipeline': _pipeline(entry['train_pipeline'], 'mmdet'),
    }
    test = {
        'type': data['test_type'],
        'ann_file': _files(data['test_ann']),
        'pipeline': _test_pipeline(entry['test_pipeline'], 'mmdet'),
    }
    if data['filter_empty_gt'] is True:
        train['filter_empty_gt'] = True
    _image_folders(dataset, train, test, root)
    val = copy.deepcopy(test)
    if dataset == 'voc':  # validation is always on VOC 2007
        val['ann_file'] = f'{root}VOC2007/ImageSets/Main/test.txt'
        val['img_prefix'] = f'{root}VOC2007/'
    if data.get('wrapper') == 'RepeatDataset':
        ignored = _pipeline(entry['train_pipeline_written_in_config_but_ignored'], 'mmdet')
        times = data['repeat_times']
        train = {'type': 'RepeatDataset', 'times': times, 'dataset': train, 'pipeline': ignored}
    elif data.get('wrapper') == 'ClassBalancedDataset':
        threshold = data['oversample_thr']
        train = {'type': 'ClassBalancedDataset', 'oversample_thr': threshold, 'dataset': train}
    loaders = {}
    if 'train_dataloader' in data:
        loaders['train_dataloader'] = data['train_dataloader']
    return {
        'data_root': root,
        'data': {
            'samples_per_gpu': batch['per_gpu'],
            'workers_per_gpu': batch['workers_per_gpu'],
            'train': train,
            'val': val,
            'test': test,
            **loaders,
        },
        'model': _detector(entry),
    }


def _files(path):
    if isinstance(path, list):
        return path
    return f'data/{path.removeprefix("./")}'


def _image_folders(dataset, train, test, root):
    if dataset == 'voc':
        train['img_prefix'] = [f'{root}VOC2007/', f'{root}VOC2012/']
        test['img_prefix'] = test['ann_file'].partition('ImageSets')[0]
    elif dataset == 'openimages':
        train['img_prefix'], test['img_prefix'] = f'{root}train/', f'{root}validation/'
        names = f'{root}annotations/'
        for part in (train, test):
            part['label_file'] = f'{names}class-descriptions-boxable.csv'
            part['hierarchy_file'] = f'{names}bbox_labels_600_hierarchy.json'
        test['meta_file'] = f'{names}validation-image-metas.pkl'
        test['image_level_ann_file'] = (
            f'{names}validation-annotations-human-imagelabels-boxable.csv'
        )
    else:
        folders = {
            'coco': ('train2017/', 'val2017/'),
            'crowd_human': ('Images', 'Images'),
            'lvis': ('', ''),
        }[dataset]
        train['img_prefix'], test['img_prefix'] = (root + folder for folder in folders)


def _detector(entry):
    framework = entry['framework']
    if framework == 'Mask R-CNN':
        return _mask_rcnn(entry)
    return _cascade(entry) if framework.startswith('Cascade') else _dino(entry)


def _stock_model(name, entry):
    model = Config.fromfile(_STOCK / name).model.to_dict()
    del model['data_preprocessor']
    return {**model, 'backbone': _backbone(entry), 'neck': entry['neck']}


def _mask_rcnn(entry):
    model, heads = _stock_model('mask-rcnn_r50_fpn.py', entry), entry['heads']
    rpn, rcnn = heads['rpn'], heads['rcnn']
    _set_rpn(model, rpn)
    model['rpn_head']['loss_bbox']['type'] = rpn['loss_bbox']
    generator = model['rpn_head']['anchor_generator']
    generator.update(scales=rpn['anchor_scales'], ratios=rpn['ratios'], strides=rpn['strides'])
    head = model['roi_head']['bbox_head']
    head.update(type=rcnn['bbox_head'], reg_class_agnostic=rcnn['reg_class_agnostic'])
    head['bbox_coder']['target_stds'] = rcnn['bbox_stds']
    head['num_classes'] = model['roi_head']['mask_head']['num_classes'] = heads['num_classes']
    train = model['train_cfg']['rcnn']
    train['mask_size'] = rcnn['train']['mask_size']
    train['sampler'].update(num=rcnn['train']['num'], pos_fraction=rcnn['train']['pos_fraction'])
    _set_rcnn_test(model, rcnn['test'])
    return model


def _set_rpn(model, rpn):
    train, test = rpn['train'], rpn['test']
    assigner = model['train_cfg']['rpn']['assigner']
    assigner.update(pos_iou_thr=train['pos_iou'], neg_iou_thr=train['neg_iou'])
    model['train_cfg']['rpn']['sampler']['num'] = train['num']
    if 'allowed_border' in train:
        model['train_cfg']['rpn']['allowed_border'] = train['allowed_border']
    for part, values in (
        (model['train_cfg']['rpn_proposal'], train),
        (model['test_cfg']['rpn'], test),
    ):
        part.update(nms_pre=values['nms_pre'], max_per_img=values['max_per_img'])
        part['nms']['iou_threshold'] = values['nms_iou']


def _set_rcnn_test(model, test):
    settings = model['test_cfg']['rcnn']
    settings.update(score_thr=test['score_thr'], max_per_img=test['max_per_img'])
    settings['nms']['iou_threshold'] = test['nms_iou']
    settings['mask_thr_binary'] = test['mask_thr_binary']


def _loss(text):
    """``'SmoothL1Loss beta=1/9 w=1.0'`` -> the loss."""
    kind, *settings = text.split()
    values = dict(setting.split('=') for setting in settings)
    loss = {'type': kind, 'loss_weight': float(values.get('w', 1.0))}
    if 'beta' in values:
        loss['beta'] = 1 / 9 if values['beta'] == '1/9' else float(values['beta'])
    return loss


def _cascade(entry):
    model, heads = _stock_model('cascade-mask-rcnn_r50_fpn.py', entry), entry['heads']
    _set_rpn(model, heads['rpn'])
    model['rpn_head']['loss_bbox'] = _loss(heads['rpn']['loss_bbox'])
    rcnn, roi, box = heads['rcnn'], model['roi_head'], dict(heads['bbox_head'])
    box['loss_bbox'] = _loss(box['loss_bbox'])
    del box['loss_cls']
    if norm := box.pop('norm', None):
        box['norm_cfg'] = {'type': norm, 'requires_grad': True}
    for stage, stds in zip(roi['bbox_head'], rcnn['bbox_stds'], strict=True):
        stage.update(copy.deepcopy(box), num_classes=heads['num_classes'])
        stage['bbox_coder']['target_stds'] = stds
    roi['stage_loss_weights'] = rcnn['stage_loss_weights']
    for stage, threshold in zip(model['train_cfg']['rcnn'], rcnn['stage_iou_thr'], strict=True):
        keys = ('pos_iou_thr', 'neg_iou_thr', 'min_pos_iou')
        stage['assigner'].update(dict.fromkeys(keys, threshold))
        stage['assigner']['match_low_quality'] = rcnn['match_low_quality']
    if heads['mask_head'] is None:
        del roi['mask_head'], roi['mask_roi_extractor']
    _set_rcnn_test(model, rcnn['test'])
    return model


def _neck(neck):
    norm = {'type': 'GN', 'num_groups': int(neck['norm'].removeprefix('GN'))}
    keys = ('type', 'in_channels', 'kernel_size', 'out_channels', 'num_outs')
    old = {**{key: neck[key] for key in keys}, 'norm_cfg': norm, 'act_cfg': neck['act']}
    return [old] if 'wrapped_in_list' in neck else old


def _deformable(part, dims):
    return {
        'type': 'MultiScaleDeformableAttention',
        'embed_dims': dims,
        'num_levels': part['msda_levels'],
        'dropout': part['dropout'],
    }


def _dino_layers(part, dims, attentions, order):
    ffn = {
        'type': part['ffn_type'],
        'embed_dims': dims,
        'feedforward_channels': part['ffn_channels'],
        'ffn_drop': part['dropout'],
        'num_fcs': 2,
        'act_cfg': {'type': 'ReLU', 'inplace': True},
        'use_checkpoint': part.get('ffn_checkpoint_requested', False),
    }
    if 'ffn_split' in part:
        ffn['split'] = part['ffn_split']
    return {
        'type': 'DetrTransformerDecoderLayer',
        'attn_cfgs': attentions,
        'feedforward_channels': part['ffn_channels'],
        'ffn_dropout': part['dropout'],
        'ffn_cfgs': ffn,
        'operation_order': order,
    }


def _dino(entry):
    heads = entry['heads']
    dims, encoder, decoder = heads['embed_dims'], heads['encoder'], heads['decoder']
    self_attention = {
        'type': 'MultiheadAttention',
        'embed_dims': dims,
        'num_heads': decoder['self_attn_heads'],
        'dropout': decoder['dropout'],
    }
    noise, costs = heads['denoising'], heads['assigner_costs']
    cb = heads['type'] == 'CBDINOHead'
    head = {
        'type': heads['type'],
        'num_query': heads['num_queries'],
        'num_classes': heads['num_classes'],
        'in_channels': 2048,
        'sync_cls_avg_factor': heads['sync_cls_avg_factor'],
        'as_two_stage': heads['as_two_stage'],
        'with_box_refine': heads['with_box_refine'],
        'dn_cfg': {
            'type': 'CdnQueryGenerator',
            'noise_scale': {'label': noise['label_noise'], 'box': noise['box_noise']},
            'group_cfg': {
                'dynamic': noise['dynamic'],
                'num_groups': None,
                'num_dn_queries': noise['num_dn_queries'],
            },
        },
        'transformer': {
            'type': 'DinoTransformer',
            'two_stage_num_proposals': heads['two_stage_num_proposals'],
            'encoder': {
                'type': 'DetrTransformerEncoder',
                'num_layers': encoder['num_layers'],
                'transformerlayers': _dino_layers(
                    encoder, dims, _deformable(encoder, dims), ('self_attn', 'norm', 'ffn', 'norm')
                ),
            },
            'decoder': {
                'type': 'DinoTransformerDecoder',
                'num_layers': decoder['num_layers'],
                'return_intermediate': decoder['return_intermediate'],
                'transformerlayers': _dino_layers(
                    decoder,
                    dims,
                    [self_attention, _deformable(decoder, dims)],
                    ('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
                ),
            },
        },
        'positional_encoding': {'type': 'SinePositionalEncoding', **heads['positional_encoding']},
        'loss_cls': {'use_sigmoid': True, **_weighted(heads['loss_cls'])},
        'loss_bbox': _weighted(heads['loss_bbox']),
        'loss_iou': _weighted(heads['loss_iou']),
    }
    # Left to the defaults of the official classes.
    assert heads.get('cb_first_weight', 0.5) == 0.5
    assert head['positional_encoding'].pop('offset') == 0.0
    return {
        'type': 'CBDINO' if cb else 'DINO',
        'backbone': _backbone(entry),
        'neck': _neck(entry['neck']),
        'bbox_head': head,
        'train_cfg': {
            'assigner': {
                'type': 'HungarianAssigner',
                'cls_cost': {'type': 'FocalLossCost', 'weight': costs['focal']},
                'reg_cost': {
                    'type': 'BBoxL1Cost',
                    'weight': costs['bbox_l1_cxcywh'],
                    'box_format': 'xywh',
                },
                'iou_cost': {'type': 'IoUCost', 'iou_mode': 'giou', 'weight': costs['giou']},
            },
            **heads.get('train_cfg_keys_that_are_noops', {}),
        },
        'test_cfg': {'max_per_img': heads['test_max_per_img']},
    }


def _weighted(loss):
    return {'loss_weight' if key == 'weight' else key: value for key, value in loss.items()}


def _segmentation(entry, dataset):
    data, batch = entry['dataset'], entry['batch']
    splits = {}
    for split in ('train', 'test'):
        settings = {
            'type': data[f'{split}_type'],
            'data_root': _SEG_ROOTS[dataset],
            'img_dir': data[f'{split}_img_dir'],
            'ann_dir': data[f'{split}_ann_dir'],
        }
        if f'{split}_split' in data:
            settings['split'] = data[f'{split}_split']
        if 'reduce_zero_label' in data:
            settings['reduce_zero_label'] = data['reduce_zero_label']
        splits[split] = settings
    if dataset == 'mapillary':  # tested on Cityscapes
        splits['test']['data_root'] = _SEG_ROOTS['cityscapes']
    splits['train']['pipeline'] = _pipeline(entry['train_pipeline'], 'mmseg')
    splits['test']['pipeline'] = _test_pipeline(entry['test_pipeline'], 'mmseg')
    return {
        'data_root': splits['train']['data_root'],
        'data': {
            'samples_per_gpu': batch['per_gpu'],
            'workers_per_gpu': batch['workers_per_gpu'],
            **splits,
            'val': copy.deepcopy(splits['test']),
        },
        'model': _segmentor(entry),
    }


def _segmentor(entry):
    heads = entry['heads']
    test = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in entry['test_mode'].items()
    }
    if entry['framework'] == 'Mask2Former':
        return _mask2former(entry, test)
    model = {
        'type': 'EncoderDecoder',
        'pretrained': None,
        'backbone': _backbone(entry),
        'train_cfg': {},
        'test_cfg': test,
    }
    for name in ('decode_head', 'auxiliary_head'):
        if heads[name] is None:
            continue
        head = dict(heads[name])
        text = head.pop('loss', 'CrossEntropy w=1.0').replace('CrossEntropy', 'CrossEntropyLoss')
        head.pop('norm', None)
        head['norm_cfg'] = {'type': 'SyncBN', 'requires_grad': True}
        head['align_corners'] = False
        head['loss_decode'] = {**_loss(text), 'use_sigmoid': False}
        if name == 'decode_head':
            head['in_index'] = [0, 1, 2, 3]
        model[name] = head
    return model


def _mask2former(entry, test):
    heads = entry['heads']
    head, classes = heads['decode_head'], heads['num_classes']
    pixel, decoder = head['pixel_decoder'], head['transformer_decoder']
    relu = {'type': 'ReLU', 'inplace': True}

    def ffn(part):
        return {
            'type': 'FFN',
            'embed_dims': part['embed_dims'],
            'feedforward_channels': part['ffn_channels'],
            'num_fcs': 2,
            'ffn_drop': 0.0,
            'act_cfg': relu,
        }

    def position(part):
        feats = part['pos_num_feats']
        return {'type': 'SinePositionalEncoding', 'num_feats': feats, 'normalize': True}

    deformable = {
        'type': 'MultiScaleDeformableAttention',
        **{key: pixel[key] for key in ('embed_dims', 'num_heads', 'num_levels', 'num_points')},
        'im2col_step': 64,
        'dropout': 0.0,
        'batch_first': False,
    }
    attention = {
        'type': 'MultiheadAttention',
        **{key: decoder[key] for key in ('embed_dims', 'num_heads')},
        'attn_drop': 0.0,
        'proj_drop': 0.0,
        'dropout_layer': None,
        'batch_first': False,
    }
    loss_cls, loss_mask, loss_dice = head['loss_cls'], head['loss_mask'], head['loss_dice']
    costs = head['train']['assigner_costs']
    entropy = {'type': 'CrossEntropyLoss', 'reduction': 'mean'}
    return {
        'type': 'EncoderDecoderMask2Former',
        'pretrained': None,
        'backbone': _backbone(entry),
        'decode_head': {
            **{
                key: head[key]
                for key in (
                    'type',
                    'in_channels',
                    'feat_channels',
                    'out_channels',
                    'num_queries',
                    'num_transformer_feat_level',
                )
            },
            'in_index': [0, 1, 2, 3],
            'num_things_classes': 100,
            'num_stuff_classes': 50,
            'num_classes': classes,
            'enforce_decoder_input_project': False,
            'pixel_decoder': {
                'type': pixel['type'],
                'num_outs': 3,
                'norm_cfg': {'type': 'GN', 'num_groups': int(pixel['norm'].removeprefix('GN'))},
                'act_cfg': {'type': 'ReLU'},
                'encoder': {
                    'type': 'DetrTransformerEncoder',
                    'num_layers': pixel['num_layers'],
                    'transformerlayers': {
                        'type': 'BaseTransformerLayer',
                        'attn_cfgs': deformable,
                        'ffn_cfgs': ffn(pixel),
                        'operation_order': ('self_attn', 'norm', 'ffn', 'norm'),
                    },
                },
                'positional_encoding': position(pixel),
            },
            'positional_encoding': position(decoder),
            'transformer_decoder': {
                'type': 'DetrTransformerDecoder',
                'return_intermediate': True,
                'num_layers': decoder['num_layers'],
                'transformerlayers': {
                    'type': 'DetrTransformerDecoderLayer',
                    'attn_cfgs': attention,
                    'ffn_cfgs': ffn(decoder),
                    'feedforward_channels': decoder['ffn_channels'],
                    'operation_order': tuple(decoder['order'].split(',')),
                },
            },
            'loss_cls': {
                **entropy,
                'use_sigmoid': False,
                'loss_weight': loss_cls['weight'],
                'class_weight': [1.0] * classes + [loss_cls['no_object_weight']],
            },
            'loss_mask': {**entropy, 'use_sigmoid': True, 'loss_weight': loss_mask['weight']},
            'loss_dice': {
                'type': 'DiceLoss',
                'use_sigmoid': True,
                'activate': True,
                'reduction': 'mean',
                'naive_dice': True,
                'eps': loss_dice['eps'],
                'loss_weight': loss_dice['weight'],
            },
        },
        'train_cfg': {
            **{
                key: head['train'][key]
                for key in ('num_points', 'oversample_ratio', 'importance_sample_ratio')
            },
            'assigner': {
                'type': 'MaskHungarianAssigner',
                'cls_cost': {'type': 'ClassificationCost', 'weight': costs['cls']},
                'mask_cost': {
                    'type': 'CrossEntropyLossCost',
                    'weight': costs['mask_bce'],
                    'use_sigmoid': True,
                },
                'dice_cost': {
                    'type': 'DiceCost',
                    'weight': costs['dice'],
                    'pred_act': True,
                    'eps': 1.0,
                },
            },
            'sampler': {'type': 'MaskPseudoSampler'},
        },
        'test_cfg': {'panoptic_on': True, 'semantic_on': False, 'instance_on': True, **test},
    }
