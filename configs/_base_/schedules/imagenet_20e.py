# Fine-tuning with layer-wise learning-rate decay, batch of 512.
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=1)
val_cfg = dict()
test_cfg = dict()

param_scheduler = dict(
    type='WarmupCosineLR', T_max=20, warmup=2, end=20, convert_to_iter_based=True
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    constructor='ClassificationLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, dcn_lr_mult=0.1),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=512)

# The average includes the buffers of batch norm, as officially.
custom_hooks = [
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.0001, update_buffers=True),
]
