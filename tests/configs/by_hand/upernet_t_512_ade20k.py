# Settings of UPerNet with InternImage-T, 160k iterations on ADE20K, as the old stack spells them.
# Written out from a list of facts.
normalize = dict(
    type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
train = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', img_scale=(2048, 512), ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    normalize,
    dict(type='Pad', size=(512, 512), pad_val=0, seg_pad_val=255),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_semantic_seg']),
]
single = [
    dict(type='Resize', keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='RandomFlip'),
    normalize,
    dict(type='ImageToTensor', keys=['img']),
    dict(type='Collect', keys=['img']),
]
test = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2048, 512), flip=False, transforms=single),
]


def ade20k(split, pipeline):
    return dict(
        type='ADE20KDataset',
        data_root='data/ADEChallengeData2016',
        img_dir=f'images/{split}',
        ann_dir=f'annotations/{split}',
        pipeline=pipeline,
    )


data = dict(
    samples_per_gpu=2,
    workers_per_gpu=4,
    train=ade20k('training', train),
    val=ade20k('validation', test),
    test=ade20k('validation', test),
)
del ade20k, normalize, train, single, test


def loss(weight):
    return dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=weight)


norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='InternImage',
        core_op='DCNv3',
        channels=64,
        depths=[4, 4, 18, 4],
        groups=[4, 8, 16, 32],
        mlp_ratio=4.0,
        drop_path_rate=0.2,
        norm_layer='LN',
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=False,
        with_cp=False,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
            'internimage_t_1k_224.pth',
        ),
    ),
    decode_head=dict(
        type='UPerHead',
        in_channels=[64, 128, 256, 512],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=loss(1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=256,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=loss(0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
del loss
evaluation = dict(interval=16000, metric='mIoU', pre_eval=True, save_best='mIoU')
optimizer = dict(
    type='AdamW',
    lr=0.00006,
    betas=(0.9, 0.999),
    weight_decay=0.05,
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(num_layers=30, layer_decay_rate=1.0, depths=[4, 4, 18, 4]),
)
optimizer_config = dict(grad_clip=None)
lr_config = dict(
    policy='poly',
    warmup='linear',
    warmup_iters=1500,
    warmup_ratio=1e-6,
    power=1.0,
    min_lr=0.0,
    by_epoch=False,
)
runner = dict(type='IterBasedRunner', max_iters=160000)
checkpoint_config = dict(by_epoch=False, interval=1000, max_keep_ckpts=1)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook', by_epoch=False)])
cudnn_benchmark = True
