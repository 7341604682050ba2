# For a training counted in iterations.
_base_ = './default_runtime_det.py'

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=3),
)
log_processor = dict(by_epoch=False)
