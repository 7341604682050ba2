# UPerNet on InternImage-T, from its ImageNet weights. Needs a GPU.
_base_ = [
    './labels.py',
    '../_base_/models/upernet_internimage.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    decode_head=dict(num_classes={{_base_.num_classes}}),
    auxiliary_head=dict(num_classes={{_base_.num_classes}}),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=500))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
)
randomness = dict(seed=0)
