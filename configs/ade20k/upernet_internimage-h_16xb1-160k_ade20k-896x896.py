_base_ = [
    '../_base_/models/upernet_internimage.py',
    '../_base_/datasets/ade20k_896x896.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/default_runtime_seg.py',
]

model = dict(
    data_preprocessor=dict(size=(896, 896)),
    backbone=dict(
        arch='huge',
        drop_path_rate=0.5,
        init_cfg=dict(
            checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
            'internimage_h_jointto22k_384.pth'
        ),
    ),
    decode_head=dict(in_channels=[320, 640, 1280, 2560]),
    auxiliary_head=dict(in_channels=1280),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.00002),
    paramwise_cfg=dict(layer_decay_rate=0.95),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)

train_dataloader = dict(batch_size=1)
