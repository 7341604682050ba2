_base_ = [
    '../_base_/models/upernet_internimage.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/default_runtime_seg.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 1024)),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=30, depths=[4, 4, 18, 4]))
