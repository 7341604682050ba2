# Four nodes: 32 GPUs x 2 images, twice the learning rate of 1x, and the weights averaged.
_base_ = './schedule_3x.py'

optim_wrapper = dict(optimizer=dict(lr=0.0002))
auto_scale_lr = dict(enable=False, base_batch_size=64)

custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0001,
        gamma=2000,
        update_buffers=True,
        priority=49,
    )
]
