_base_ = [
    '../_base_/models/internimage_attention-pooling.py',
    '../_base_/datasets/imagenet_640.py',
    '../_base_/schedules/imagenet_20e.py',
    '../_base_/default_runtime_cls.py',
]


train_dataloader = dict(batch_size=16)
val_dataloader = dict(batch_size=16)
test_dataloader = val_dataloader

# Of its 21841 classes, the rows of the 1000 ones are taken.
load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_h_jointto22k_384.pth'
)
