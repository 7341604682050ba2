# Faster R-CNN on InternImage-T, from its ImageNet weights. Needs a GPU.
_base_ = [
    './boxes.py',
    '../_base_/models/mask-rcnn_internimage_fpn.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    type='FasterRCNN',
    roi_head=dict(
        bbox_head=dict(num_classes={{_base_.num_classes}}), mask_roi_extractor=None, mask_head=None
    ),
)
default_hooks = dict(logger=dict(interval=10))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
)
randomness = dict(seed=0)
