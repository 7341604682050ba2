# DINO on InternImage-H, for fine-tuning from an Objects365 model: more denoising queries, and no
# ImageNet weights, since `load_from` brings all.
_base_ = './dino-4scale_internimage.py'

model = dict(
    backbone=dict(arch='huge', drop_path_rate=0.5, init_cfg=None),
    neck=dict(in_channels=[640, 1280, 2560]),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=1000)),
)
