_base_ = [
    '../_base_/models/mask-rcnn_internimage_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
            'internimage_b_1k_224.pth'
        ),
    ),
    neck=dict(in_channels=[112, 224, 448, 896]),
)
