# iNaturalist 2018 at 384, with the date and place of each picture.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=384,
        crop_ratio_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    # rand-m9-mstd0.5-inc1 of timm. With it, timm leaves out the colour jitter that the official
    # configs also name.
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
    ),
    dict(
        type='PackInputs',
        meta_keys=(
            *('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip'),
            *('flip_direction', 'temporal_info', 'spatial_info'),
        ),
    ),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(
        type='PackInputs',
        meta_keys=(
            *('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip'),
            *('flip_direction', 'temporal_info', 'spatial_info'),
        ),
    ),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='INaturalist2018',
        data_root='data/inat2018',
        ann_file='train2018.json',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='INaturalist2018',
        data_root='data/inat2018',
        ann_file='val2018.json',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
