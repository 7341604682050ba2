_base_ = [
    '../_base_/models/mask2former_internimage.py',
    '../_base_/datasets/mapillary_896x896.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/default_runtime_seg.py',
]

num_classes = 19
model = dict(
    data_preprocessor=dict(size=(896, 896)),
    decode_head=dict(
        num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])
    ),
    test_cfg=dict(mode='slide', crop_size=(896, 896), stride=(512, 512)),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.00002),
    paramwise_cfg=dict(layer_decay_rate=0.95),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)

# 16 GPUs x 2 images
auto_scale_lr = dict(base_batch_size=32)
