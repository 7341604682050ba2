_base_ = [
    '../_base_/models/mask2former_internimage.py',
    '../_base_/datasets/pascal_context_59.py',
    '../_base_/schedules/schedule_40k.py',
    '../_base_/default_runtime_seg.py',
]

num_classes = 59
model = dict(
    data_preprocessor=dict(size=(480, 480)),
    decode_head=dict(
        num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])
    ),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.00002),
    paramwise_cfg=dict(layer_decay_rate=0.95),
)
