# Training starts from an Objects365 model, which the official release does not publish for this
# detector: give one with --cfg-options load_from=CHECKPOINT.
_base_ = './dino-4scale_internimage-h_b1-20k_objects365-coco.py'

model = dict(backbone=dict(arch='giant'), neck=dict(in_channels=[1024, 2048, 4096]))
