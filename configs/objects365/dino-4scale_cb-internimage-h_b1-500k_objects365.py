# Pre-training of CB-DINO. The official release has no config of it: the number of iterations is
# ours, everything else is that of its fine-tuning configs.
_base_ = [
    '../_base_/models/dino-4scale_cb-internimage-h.py',
    '../_base_/datasets/objects365v2_detection.py',
    '../_base_/schedules/schedule_dino_20k.py',
    '../_base_/default_runtime_det_iter.py',
]

model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
            'internimage_h_jointto22k_384.pth',
        )
    ),
    bbox_head=dict(num_classes=365),
)

train_cfg = dict(max_iters=500000, val_interval=50000)
default_hooks = dict(checkpoint=dict(interval=5000))
