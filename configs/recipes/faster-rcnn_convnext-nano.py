# ConvNeXt with depths and widths at which it costs as much as the InternImage beside it, for
# comparison. Needs mmpretrain.
_base_ = './faster-rcnn_internimage-nano.py'
custom_imports = dict(imports=['internimage_mm', 'internimage_mm.det', 'mmpretrain.models'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[1, 1, 3, 1], channels=[32, 64, 128, 256]),
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
    ),
)
