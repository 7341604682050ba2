# The whole backbone at a tenth of the learning rate, in place of layer-wise decay.
_base_ = './dino-4scale_internimage-l_8xb2-12e_coco.py'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    # Weight decay acts on all parameters, norms and biases included.
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
