_base_ = [
    '../_base_/models/internimage_attention-pooling.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_20e.py',
    '../_base_/default_runtime_cls.py',
]


train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=64)
test_dataloader = val_dataloader

# The official release does not say the batch; these are its defaults, 8 GPUs x 128 images.
optim_wrapper = dict(optimizer=dict(lr=4e-5))
auto_scale_lr = dict(base_batch_size=1024)

# Of its 21841 classes, the rows of the 1000 ones are taken.
load_from = (
    'https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_h_jointto22k_384.pth'
)
