# The classifier of InternImage-H. G overrides `arch` and `drop_path_rate` of the backbone and the
# channels of the neck.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='InternImage',
        arch='huge',
        drop_path_rate=0.2,
        with_cp=True,
        out_indices=(2, 3),
    ),
    neck=dict(
        type='AttentionPoolingNeck',
        in_channels=[1280, 2560],
        embed_channels=1024,
        num_heads=16,
        out_channels=768,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.3, mode='original'),
        topk=(1, 5),
    ),
)
