_base_ = [
    '../_base_/models/cascade-rcnn_internimage_fpn.py',
    '../_base_/datasets/crowdhuman_ms-crop.py',
    '../_base_/schedules/schedule_3x.py',
    '../_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(
        arch='xlarge',
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
            'internimage_xl_22k_192to384.pth'
        ),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
    roi_head=dict(
        bbox_head=[dict(head, num_classes=1) for head in _base_.model.roi_head.bbox_head]
    ),
)

# Evaluated once, at the end: the official interval exceeds the number of epochs.
train_cfg = dict(val_interval=100)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.0001),
    paramwise_cfg=dict(layer_decay_rate=0.94),
)

# 64 GPUs x 2 images
auto_scale_lr = dict(enable=False, base_batch_size=128)
