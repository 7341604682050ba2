_base_ = [
    '../_base_/models/internimage_conv-pooling.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_20e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    backbone=dict(arch='large', layer_scale=1e-5, drop_path_rate=0.1, with_cp=True),
    neck=dict(in_channels=1280, out_channels=1920),
    head=dict(in_channels=1920, loss=dict(label_smooth_val=0.3)),
)

train_dataloader = dict(batch_size=16)
val_dataloader = dict(batch_size=16)
test_dataloader = val_dataloader

# Of its 21841 classes, the rows of the 1000 ones are taken.
load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_l_22k_192to384.pth'
)
