_base_ = [
    '../_base_/models/mask2former_internimage.py',
    '../_base_/datasets/cityscapes_extra_1024x1024.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/default_runtime_seg.py',
]

num_classes = 19
load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
    'mask2former_internimage_h_896x896_80k_mapillary.pth'
)
model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    backbone=dict(init_cfg=None),
    decode_head=dict(
        num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])
    ),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(512, 512)),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.00001),
    paramwise_cfg=dict(layer_decay_rate=0.95),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
