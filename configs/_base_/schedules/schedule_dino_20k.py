# Fine-tuning from an Objects365 model, one image per GPU. How many GPUs the official release used
# is not published, hence no base_batch_size.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=20000, val_interval=200)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Constant after the warm-up of 500 iterations (LinearLR reaches factor 1 at iteration end - 1).
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    constructor='CustomLayerDecayOptimizerConstructor',
    # offset_lr_scale acts on the sampling offsets of encoder and decoder.
    paramwise_cfg=dict(layer_decay_rate=0.94, offset_lr_scale=1e-3),
)
