_base_ = [
    '../_base_/models/mask2former_internimage_dim1024.py',
    '../_base_/datasets/coco-stuff164k_896x896.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/default_runtime_seg.py',
]

num_classes = 171
model = dict(
    data_preprocessor=dict(size=(896, 896)),
    decode_head=dict(
        num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])
    ),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.00002),
    paramwise_cfg=dict(layer_decay_rate=0.95),
)

train_cfg = dict(val_interval=8000)
