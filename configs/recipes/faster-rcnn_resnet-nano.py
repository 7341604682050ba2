# ResNet-18 with a width at which it costs as much as the InternImage beside it, for comparison.
_base_ = './faster-rcnn_internimage-nano.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=20,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
    ),
    neck=dict(in_channels=[20, 40, 80, 160]),
)
