# The classifier of InternImage-T. S, B, L and XL override `arch`, `layer_scale` and
# `drop_path_rate` of the backbone and the channels.
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
        arch='tiny',
        layer_scale=None,  # 1.0 in detection and segmentation
        drop_path_rate=0.1,
        out_indices=(3,),
    ),
    neck=dict(type='ConvPoolingNeck', in_channels=512, out_channels=768),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
)
