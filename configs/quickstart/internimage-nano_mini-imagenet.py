# A very small InternImage classifier, trained from scratch on the generated mini ImageNet data set
# (python tools/make_mini_dataset.py imagenet) in minutes on a CPU. For trying things out, not for
# results: 68 of the 100 validation images right after 30 epochs (measured once).
_base_ = [
    '../_base_/models/internimage_conv-pooling.py',
    '../_base_/default_runtime_cls.py',
]

classes = ['circle', 'cross', 'ring', 'square', 'star', 'triangle']
data_root = 'data/mini_imagenet'
max_epochs = 30

model = dict(
    data_preprocessor=dict(num_classes=len(classes)),
    backbone=dict(
        _delete_=True,
        type='InternImage',
        channels=32,
        depths=[1, 1, 2, 1],
        groups=[2, 4, 8, 16],
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        norm_layer='BN',
        out_indices=(3,),
    ),
    neck=dict(in_channels=256, out_channels=384),
    head=dict(in_channels=384, num_classes=len(classes), topk=(1,)),
)

train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(
        type='RandomResizedCrop',
        scale=64,
        crop_ratio_range=(0.7, 1.0),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='ResizeEdge', scale=64, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='train',
        classes=classes,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        classes=classes,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
param_scheduler = dict(
    type='WarmupCosineLR', T_max=max_epochs, warmup=1, end=max_epochs, convert_to_iter_based=True
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.002, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
randomness = dict(seed=0)
