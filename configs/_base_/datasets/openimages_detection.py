_base_ = './tta_2000x1000.py'

dataset_type = 'OpenImagesDataset'
data_root = 'data/OpenImages/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    # The data set turns the relative boxes of OpenImages into pixels by itself.
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    # Short edge drawn from 600 to 1200, long edge at most 2000.
    dict(type='RandomResize', scale=[(2000, 600), (2000, 1200)], keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2000, 1000), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        # The last two are what OpenImagesMetric evaluates with.
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
            'instances',
            'image_level_labels',
        ),
    ),
]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][2][0]['meta_keys'] = (
    *test_pipeline[-1]['meta_keys'],
    'flip',
    'flip_direction',
)

train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    # What the official config asks for. mmdet 2 ignored it with its iteration runner, so that the
    # published model saw all images equally often: sampler=dict(type='InfiniteSampler').
    # A class first, then one of its images: rare classes are seen as often as frequent ones.
    sampler=dict(type='ClassAwareSampler', num_sample_class=1),
    batch_sampler=None,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/oidv6-train-annotations-bbox.csv',
        data_prefix=dict(img='train/'),
        label_file='annotations/class-descriptions-boxable.csv',
        hierarchy_file='annotations/bbox_labels_600_hierarchy.json',
        meta_file='annotations/train-image-metas.pkl',
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/validation-annotations-bbox.csv',
        data_prefix=dict(img='validation/'),
        label_file='annotations/class-descriptions-boxable.csv',
        hierarchy_file='annotations/bbox_labels_600_hierarchy.json',
        meta_file='annotations/validation-image-metas.pkl',
        image_level_ann_file='annotations/validation-annotations-human-imagelabels-boxable.csv',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='OpenImagesMetric',
    iou_thrs=0.5,
    ioa_thrs=0.5,
    use_group_of=True,
    get_supercategory=True,
)
test_evaluator = val_evaluator
