_base_ = [
    '../_base_/models/cascade-mask-rcnn_internimage_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/schedule_3x_ema.py',
    '../_base_/default_runtime_det.py',
]

# offset_lr_scale is a setting of the official config without effect: it acts on the sampling
# offsets of deformable attention, of which there are none.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9, offset_lr_scale=0.01))
