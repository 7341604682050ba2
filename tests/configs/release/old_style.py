"""The 51 official detection and segmentation configs in the notation of the old stack.

Four are written by hand (``by_hand.yml``). The models of all others are theirs, or mmdet's stock
Cascade R-CNN, with what differs taken from the table of official settings; data, pipelines and
training come from the table.
"""

import copy
import functools
from pathlib import Path

import mmdet
import yaml
from mmengine.config import Config

from .zoo import ENTRIES


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor('!tuple', lambda loader, node: tuple(loader.construct_sequence(node)))


def _by_hand():
    def fresh(value):  # an alias becomes a copy
        if isinstance(value, dict):
            return {key: fresh(inner) for key, inner in value.items()}
        return [fresh(inner) for inner in value] if isinstance(value, list) else value

    loaded = yaml.load((Path(__file__).parents[1] / 'by_hand.yml').read_text(), _Loader)
    return {key: fresh(value) for key, value in loaded.items() if key[0] != '.'}


BY_HAND = _by_hand()
MASK_RCNN, DINO, UPERNET, MASK2FORMER = BY_HAND
_MODELS = {
    'Mask R-CNN': MASK_RCNN,
    'DINO': DINO,
    'CB-DINO': DINO,
    'UperNet': UPERNET,
    'SegFormer head': UPERNET,
    'Mask2Former': MASK2FORMER,
}
_NORMALIZE = dict(
    type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
_ROOTS = {
    'coco': 'data/coco/',
    'crowd_human': 'data/CrowdHuman/',
    'lvis': 'data/lvis_v1/',
    'openimages': 'data/OpenImages/',
    'voc': 'data/VOCdevkit/',
    'ade20k': 'data/ADEChallengeData2016',
    'cityscapes': 'data/cityscapes/',
    'coco_stuff10k': 'data/coco_stuff10k',
    'coco_stuff164k': 'data/coco_stuff164k',
    'mapillary': 'data/Mapillary/',
    'nyu_depth_v2': 'data/nyu_depth_v2/',
    'pascal_context': 'data/VOCdevkit/VOC2010/',
}
_IMAGES = {
    'coco': ('train2017/', 'val2017/'),
    'crowd_human': ('Images', 'Images'),
    'lvis': ('', ''),
    'openimages': ('train/', 'validation/'),
}


def old_style(official):
    """The old-style config of an official config, as plain data."""
    entry = copy.deepcopy(ENTRIES[official])
    tree, _, dataset, _ = official.split('/')
    data = (_detection_data if tree == 'detection' else _segmentation_data)(entry, dataset)
    batch = entry['batch']
    loader = {'samples_per_gpu': batch['per_gpu'], 'workers_per_gpu': batch['workers_per_gpu']}
    return {
        'data_root': _ROOTS[dataset],
        'data': {**loader, **data},
        'model': _model(entry),
        **_training(entry, tree),
    }


def _training(entry, tree):
    settings, schedule, evaluation = entry['optimizer'], entry['schedule'], entry['evaluation']
    optimizer = {key: settings[key] for key in ('type', 'lr', 'weight_decay', 'paramwise_cfg')}
    if tree == 'segmentation':  # torch's default, which detection configs leave out
        optimizer['betas'] = tuple(settings['betas'])
    if settings['constructor'] != 'DefaultOptimizerConstructor':
        optimizer['constructor'] = settings['constructor']
    warmup = {
        'warmup': schedule['warmup']['type'],
        'warmup_iters': schedule['warmup']['iters'],
        'warmup_ratio': schedule['warmup']['start_ratio'],
    }
    main = {'policy': 'step', 'step': schedule.get('milestones')}
    if schedule['policy'] == 'poly':
        main = {key: schedule[key] for key in ('policy', 'power', 'min_lr', 'by_epoch')}
    by_epoch = 'max_epochs' in schedule
    length = {key: schedule[key] for key in ('max_epochs', 'max_iters') if key in schedule}
    checkpoint = {'by_epoch': False, 'interval': 1000, 'max_keep_ckpts': 1}
    if tree == 'detection':
        interval = 1 if by_epoch else evaluation.get('interval', 1)
        kept = 10 if '/lvis/' in entry['official_config'] else 3
        checkpoint = {'interval': interval, 'max_keep_ckpts': kept}
    hooks = [{'type': 'NumClassCheckHook'}] if tree == 'detection' else []
    if ema := entry['ema']:
        hooks = [{'type': ema.pop('hook'), **ema}]
    return dict(
        optimizer=optimizer,
        optimizer_config={'grad_clip': settings['grad_clip']},
        lr_config={**main, **warmup},
        runner={'type': 'EpochBasedRunner' if by_epoch else 'IterBasedRunner', **length},
        evaluation=evaluation,
        checkpoint_config=checkpoint,
        log_config=dict(interval=50, hooks=[dict(type='TextLoggerHook', by_epoch=by_epoch)]),
        custom_hooks=hooks,
        cudnn_benchmark=tree == 'segmentation',
        dist_params={'backend': 'nccl'},
        log_level='INFO',
        load_from=entry['load_from'],
        resume_from=None,
        workflow=[('train', 1)],
    )


def _pipeline(terms, scope):
    """Terms of the table -> transforms of the old stack."""
    keys = ['img', 'gt_bboxes', 'gt_labels'] if scope == 'mmdet' else ['img', 'gt_semantic_seg']
    return [
        dict(type='LoadImageFromFile'),
        *(_transform(term, scope) for term in terms),
        dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=keys),
    ]


def _transform(term, scope):
    ((kind, value),) = term.items()
    if kind == 'load_annotations':
        names = {'bbox': 'with_bbox', 'mask': 'with_mask'}
        return dict(type='LoadAnnotations', **{names.get(k, k): v for k, v in value.items() if v})
    if kind == 'resize':
        old = {'keep_ratio': value['keep_ratio']}
        if 'ratio_range' in value:
            old['ratio_range'] = tuple(value['ratio_range'])
        if 'scales' in value:
            old['multiscale_mode'] = 'value' if value['select'] == 'one_of' else 'range'
            return dict(type='Resize', img_scale=[tuple(s) for s in value['scales']], **old)
        return dict(type='Resize', img_scale=tuple(value['scale']), **old)
    if kind == 'random_crop':
        return dict(type='RandomCrop', **{**value, 'crop_size': tuple(value['crop_size'])})
    if kind == 'random_hflip':
        return {'type': 'RandomFlip', 'flip_ratio' if scope == 'mmdet' else 'prob': value}
    if kind == 'one_of_branches':
        branches = [[_transform(inner, scope) for inner in branch] for branch in value]
        return dict(type='AutoAugment', policies=branches)
    simple = {
        'mapillary_65_to_cityscapes_19_labels': dict(type='MapillaryHack'),
        'normalize': _NORMALIZE,
        'pad': dict(type='Pad', **value) if kind == 'pad' else None,
        'photometric_distortion': dict(type='PhotoMetricDistortion'),
        'resize_to_multiple': dict(type='ResizeToMultiple', size_divisor=32),
        'semseg_to_class_masks': dict(type='ToMask'),
    }
    return simple[kind]


def _test_pipeline(test, scope):
    resize, *others = test['ops']
    augment = dict(
        type='MultiScaleFlipAug',
        img_scale=tuple(test['test_scale']),
        flip=test['flip'],
        transforms=[
            dict(type='Resize', keep_ratio=resize['resize']['keep_ratio']),
            dict(type='RandomFlip'),
            *(_transform(term, scope) for term in others),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img']),
        ],
    )
    if 'img_ratios' in test:
        # Six digits in the table: the official ones are multiples of 1/896.
        augment['img_ratios'] = [round(ratio * 896) / 896 for ratio in test['img_ratios']]
    return [dict(type='LoadImageFromFile'), augment]


def _detection_data(entry, dataset):
    data, root = entry['dataset'], _ROOTS[dataset]
    folders = _IMAGES.get(dataset, ('', ''))

    def part(split, folder, pipeline):
        kind, files = data[f'{split}_type'], data[f'{split}_ann']
        files = files if isinstance(files, list) else f'data/{files.removeprefix("./")}'
        return dict(type=kind, ann_file=files, img_prefix=root + folder, pipeline=pipeline)

    train = part('train', folders[0], _pipeline(entry['train_pipeline'], 'mmdet'))
    test = part('test', folders[1], _test_pipeline(entry['test_pipeline'], 'mmdet'))
    if data['filter_empty_gt'] is True:
        train['filter_empty_gt'] = True
    val = test
    if dataset == 'voc':
        years = [f'{root}VOC2007/', f'{root}VOC2012/']
        train['img_prefix'], test['img_prefix'] = years, test['ann_file'].partition('ImageSets')[0]
        # Validation is always on VOC 2007.
        file = f'{root}VOC2007/ImageSets/Main/test.txt'
        val = {**test, 'ann_file': file, 'img_prefix': f'{root}VOC2007/'}
    elif dataset == 'openimages':
        names = f'{root}annotations/'
        for part in (train, test):
            part['label_file'] = f'{names}class-descriptions-boxable.csv'
            part['hierarchy_file'] = f'{names}bbox_labels_600_hierarchy.json'
        test['meta_file'] = f'{names}validation-image-metas.pkl'
        labels = 'validation-annotations-human-imagelabels-boxable.csv'
        test['image_level_ann_file'] = names + labels
    if data.get('wrapper') == 'RepeatDataset':
        ignored = _pipeline(entry['train_pipeline_written_in_config_but_ignored'], 'mmdet')
        times = data['repeat_times']
        train = dict(type='RepeatDataset', times=times, dataset=train, pipeline=ignored)
    elif data.get('wrapper') == 'ClassBalancedDataset':
        threshold = data['oversample_thr']
        train = dict(type='ClassBalancedDataset', oversample_thr=threshold, dataset=train)
    loaders = {key: data[key] for key in ('train_dataloader',) if key in data}
    return {'train': train, 'val': copy.deepcopy(val), 'test': test, **loaders}


def _segmentation_data(entry, dataset):
    data = entry['dataset']

    def part(split, root, pipeline):
        old = {'type': data[f'{split}_type'], 'data_root': _ROOTS[root], 'pipeline': pipeline}
        for key in ('img_dir', 'ann_dir', 'split'):
            if f'{split}_{key}' in data:
                old[key] = data[f'{split}_{key}']
        if 'reduce_zero_label' in data:
            old['reduce_zero_label'] = data['reduce_zero_label']
        return old

    # A model trained on Mapillary Vistas is tested on Cityscapes.
    tested = 'cityscapes' if dataset == 'mapillary' else dataset
    train = part('train', dataset, _pipeline(entry['train_pipeline'], 'mmseg'))
    test = part('test', tested, _test_pipeline(entry['test_pipeline'], 'mmseg'))
    return {'train': train, 'val': copy.deepcopy(test), 'test': test}


def _model(entry):
    kind, heads = entry['framework'], entry['heads']
    by_hand = _cascade(heads) if kind.startswith('Cascade') else BY_HAND[_MODELS[kind]]['model']
    model = copy.deepcopy(by_hand)
    backbone, weights = entry['backbone'], entry['pretrained_backbone']
    free = ('variant', 'cb_zero_init', 'cb_del_stages')
    model['backbone'] = {key: value for key, value in backbone.items() if key not in free}
    model['backbone']['init_cfg'] = weights and dict(type='Pretrained', checkpoint=weights)
    if neck := entry['neck']:
        model['neck'].update(type=neck['type'], in_channels=neck['in_channels'])
        if 'wrapped_in_list' in neck:
            model['neck'] = [model['neck']]
    if _MODELS.get(kind) == DINO:
        _change_dino(model, heads)
    elif kind == 'Mask2Former':
        _change_mask2former(model['decode_head'], heads)
    elif 'decode_head' in model:
        _change_segmentor(model, heads)
    if 'test_mode' in entry:
        test = {k: tuple(v) if isinstance(v, list) else v for k, v in entry['test_mode'].items()}
        model['test_cfg'].update(test)
    return model


@functools.cache
def _stock_cascade():
    models = Path(mmdet.__file__).parent / '.mim/configs/_base_/models'
    return Config.fromfile(models / 'cascade-mask-rcnn_r50_fpn.py').model.to_dict()


def _cascade(heads):
    model, box = copy.deepcopy(_stock_cascade()), heads['bbox_head']
    del model['data_preprocessor'], box['loss_cls']
    roi = model['roi_head']
    if heads['mask_head'] is None:
        del roi['mask_head'], roi['mask_roi_extractor']
    if norm := box.pop('norm', None):
        box['norm_cfg'] = dict(type=norm, requires_grad=True)
    box['loss_bbox'] = {
        'GIoULoss w=10.0': dict(type='GIoULoss', loss_weight=10.0),
        'SmoothL1Loss beta=1.0 w=1.0': dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
    }[box['loss_bbox']]
    for stage in roi['bbox_head']:
        stage.update(box, num_classes=heads['num_classes'])
    return model


def _change_dino(model, heads):
    head = model['bbox_head']
    model['type'] = heads['type'].removesuffix('Head')
    head.update(type=heads['type'], num_classes=heads['num_classes'])
    head['dn_cfg']['group_cfg']['num_dn_queries'] = heads['denoising']['num_dn_queries']
    for name in ('encoder', 'decoder'):
        ffn, part = head['transformer'][name]['transformerlayers']['ffn_cfgs'], heads[name]
        ffn['type'] = part['ffn_type']
        ffn['use_checkpoint'] = part.get('ffn_checkpoint_requested', False)
        if 'ffn_split' in part:
            ffn['split'] = part['ffn_split']
    model['train_cfg'].update(heads.get('train_cfg_keys_that_are_noops', {}))
    model['test_cfg']['max_per_img'] = heads['test_max_per_img']


def _change_mask2former(head, heads):
    new, classes = heads['decode_head'], heads['num_classes']
    head.update({key: new[key] for key in ('feat_channels', 'out_channels', 'num_queries')})
    head['num_classes'] = classes
    head['loss_cls']['class_weight'] = [1.0] * classes + [new['loss_cls']['no_object_weight']]
    pixel = head['pixel_decoder']
    for part, coder, settings in (
        (pixel, pixel['encoder'], new['pixel_decoder']),
        (head, head['transformer_decoder'], new['transformer_decoder']),
    ):
        part['positional_encoding']['num_feats'] = settings['pos_num_feats']
        layers, dims = coder['transformerlayers'], settings['embed_dims']
        layers['attn_cfgs'].update(embed_dims=dims, num_heads=settings['num_heads'])
        layers['ffn_cfgs'].update(embed_dims=dims, feedforward_channels=settings['ffn_channels'])
        if 'feedforward_channels' in layers:
            layers['feedforward_channels'] = settings['ffn_channels']


def _change_segmentor(model, heads):
    for name in ('decode_head', 'auxiliary_head'):
        if heads[name] is None:
            del model[name]
            continue
        head = model[name]
        head.update({key: heads[name][key] for key in ('type', 'in_channels', 'channels')})
        if head['type'] == 'SegformerHead':
            del head['pool_scales']
