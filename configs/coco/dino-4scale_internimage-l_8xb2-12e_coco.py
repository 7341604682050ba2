_base_ = [
    '../_base_/models/dino-4scale_internimage.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_dino_12e.py',
    '../_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.4,
        with_cp=False,
        init_cfg=dict(
            checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
            'internimage_l_22k_192to384.pth'
        ),
    ),
    neck=dict(in_channels=[320, 640, 1280]),
)
