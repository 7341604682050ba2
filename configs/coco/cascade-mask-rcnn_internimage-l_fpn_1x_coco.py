_base_ = [
    '../_base_/models/cascade-mask-rcnn_internimage_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime_det.py',
]

optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.94))
