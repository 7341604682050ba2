_base_ = [
    '../_base_/models/mask-rcnn_internimage_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
            'internimage_s_1k_224.pth'
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
