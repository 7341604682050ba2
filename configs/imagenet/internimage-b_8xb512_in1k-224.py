_base_ = [
    '../_base_/models/internimage_conv-pooling.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    backbone=dict(arch='base', layer_scale=1e-5, drop_path_rate=0.5),
    neck=dict(in_channels=896, out_channels=1344),
    head=dict(in_channels=1344),
    # Mixup or CutMix, each with probability 0.5.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
