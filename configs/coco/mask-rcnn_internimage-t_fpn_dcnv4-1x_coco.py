# The official release can train this model with the op of DCNv4, a faster kernel for the same
# function and the same parameters. Here the switch is accepted and has no effect.
_base_ = './mask-rcnn_internimage-t_fpn_1x_coco.py'

model = dict(backbone=dict(use_dcn_v4_op=True))
