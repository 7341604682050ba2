# Training from scratch: 8 GPUs x 512 images. The official learning rates are given for a batch of
# 512 images (5e-4, warm-up from 5e-7, end at 5e-6) and multiplied with batch / 512.
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

param_scheduler = dict(
    type='WarmupCosineLR',
    T_max=300,
    warmup=20,
    warmup_lr=4e-6,
    eta_min=4e-5,
    end=300,
    convert_to_iter_based=True,
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=4096)

# The average includes the buffers of batch norm, as officially.
custom_hooks = [
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.0001, update_buffers=True),
]
