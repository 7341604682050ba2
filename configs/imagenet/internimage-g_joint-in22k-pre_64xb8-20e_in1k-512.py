_base_ = [
    '../_base_/models/internimage_attention-pooling.py',
    '../_base_/datasets/imagenet_512.py',
    '../_base_/schedules/imagenet_20e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    backbone=dict(arch='giant', drop_path_rate=0.4),
    neck=dict(in_channels=[2048, 4096]),
)

train_dataloader = dict(batch_size=8)
val_dataloader = dict(batch_size=8)
test_dataloader = val_dataloader

# Of its 21841 classes, the rows of the 1000 ones are taken.
load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_g_pretrainto22k_384.pth'
)
