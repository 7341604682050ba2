_base_ = [
    '../_base_/models/internimage_attention-pooling.py',
    '../_base_/datasets/inaturalist2018_384.py',
    '../_base_/schedules/imagenet_20e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(num_classes=8142),
    backbone=dict(drop_path_rate=0.6),
    head=dict(
        type='MetadataLinearClsHead',
        num_classes=8142,
        # The classifier of the image begins at a thousandth of the usual size.
        init_cfg=dict(
            type='TruncNormal',
            layer='Linear',
            std=0.02,
            override=dict(type='TruncNormal', name='fc', std=0.00002),
        ),
    ),
)

train_cfg = dict(max_epochs=100)
param_scheduler = dict(
    _delete_=True, type='WarmupCosineLR', T_max=100, end=100, convert_to_iter_based=True
)
# The official release does not say the batch; these are its defaults, 8 GPUs x 128 images.
optim_wrapper = dict(
    optimizer=dict(lr=4e-5),
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0
    ),
)
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = []  # no EMA

load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_h_jointto22k_384.pth'
)
