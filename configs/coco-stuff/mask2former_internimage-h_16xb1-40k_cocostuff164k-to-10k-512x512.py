_base_ = [
    '../_base_/models/mask2former_internimage_dim1024.py',
    '../_base_/datasets/coco-stuff10k.py',
    '../_base_/schedules/schedule_40k.py',
    '../_base_/default_runtime_seg.py',
]

num_classes = 171
load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
    'mask2former_internimage_h_896_80k_cocostuff164k.pth'
)
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(init_cfg=None),
    decode_head=dict(
        num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])
    ),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.00001),
    paramwise_cfg=dict(layer_decay_rate=0.95),
)
