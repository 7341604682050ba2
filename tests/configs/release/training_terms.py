"""Optimizer, schedule, batch size and weight averaging in the terms of the official table."""

import functools
import json

import numpy as np
import torch
from mmengine.registry import HOOKS, PARAM_SCHEDULERS


def optimizer(cfg, model):
    wrapper = cfg.optim_wrapper
    assert wrapper.type == 'OptimWrapper'  # float32, as the official release
    described = dict(wrapper.optimizer)
    described.setdefault('betas', [0.9, 0.999])  # of torch's AdamW
    described['constructor'] = wrapper.get('constructor', 'DefaultOptimizerConstructor')
    paramwise = json.loads(json.dumps(wrapper.get('paramwise_cfg')))
    described['paramwise_cfg'] = paramwise
    if described['constructor'] == 'CustomLayerDecayOptimizerConstructor':
        # Our configs leave to the constructor what it finds in the model; so does this.
        backbone = getattr(model.backbone, 'cb_modules', [model.backbone])[0]
        depths = [len(level.blocks) for level in backbone.levels]
        paramwise.update(num_layers=sum(depths), depths=depths)
        described['effective'] = {
            'layer_decay_rate': paramwise['layer_decay_rate'],
            # Stem and everything behind the backbone are one layer each.
            'num_layer_ids': paramwise['num_layers'] + 2,
            'offset_lr_scale': paramwise.get('offset_lr_scale', 1.0),
        }
    described['grad_clip'] = wrapper.get('clip_grad')
    return described


def batch(cfg):
    train = cfg.train_dataloader
    total = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    workers = {cfg[f'{split}_dataloader'].num_workers for split in ('train', 'val', 'test')}
    (described,) = workers
    return {
        'per_gpu': train.batch_size,
        'workers_per_gpu': described,
        'gpus': total and total // train.batch_size,
        'total': total,
    }


def ema(cfg):
    hooks = [hook for hook in cfg.get('custom_hooks', []) if hook['type'] == 'EMAHook']
    if not hooks:
        return None
    (hook,) = hooks
    built = HOOKS.build(hook)  # every argument is accepted
    assert hook['ema_type'] == 'ExpMomentumEMA'
    return {
        'hook': 'ExpMomentumEMAHook',
        'momentum': hook['momentum'],
        'total_iter': hook['gamma'],
        'priority': hook.get('priority', built.priority),
        'skip_buffers': not hook.get('update_buffers', False),
    }


def half_precision(cfg):
    return cfg.optim_wrapper.type != 'OptimWrapper'


def schedule_length(cfg):
    loop = cfg.train_cfg
    if loop.type == 'EpochBasedTrainLoop':
        return {'max_epochs': loop.max_epochs}
    assert loop.type == 'IterBasedTrainLoop'
    return {'max_iters': loop.max_iters}


def official_curve(base_lr, schedule, iterations, epoch_length):
    """Learning rate at each iteration by mmcv 1.5's formulas (``lr_updater.py``)."""
    t = np.arange(iterations)
    if schedule['policy'] == 'step':
        passed = np.searchsorted(schedule['milestones'], t // epoch_length, side='right')
        lr = base_lr * schedule['gamma'] ** passed
    else:
        coefficient = (1 - t / schedule['max_iters']) ** schedule['power']
        lr = (base_lr - schedule['min_lr']) * coefficient + schedule['min_lr']
    warmup = schedule['warmup']
    assert warmup['type'] == 'linear'
    factor = 1 - (1 - t / warmup['iters']) * (1 - warmup['start_ratio'])
    return lr * np.where(t < warmup['iters'], factor, 1.0)


def official_cosine_curve(base_lr, schedule, iterations, epoch_length):
    """Learning rate of a classification config at each update by timm 0.6's CosineLRScheduler
    (``t_in_epochs=False``, one cycle), as ``lr_scheduler.py`` of the official code sets it up."""
    t = np.arange(iterations)
    warmup = schedule['warmup_epochs'] * epoch_length
    low, high = schedule['min_lr'], base_lr
    lr = low + 0.5 * (high - low) * (1 + np.cos(np.pi * t / (schedule['epochs'] * epoch_length)))
    start = schedule['warmup_lr']
    return np.where(t < warmup, start + t * (base_lr - start) / max(warmup, 1), lr)


@functools.cache
def new_curve(schedulers, base_lr, iterations, epoch_length):
    """Learning rate at each iteration as mmengine's training loop and scheduler hook set it.

    ``schedulers`` is ``param_scheduler`` as JSON.
    """
    group = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base_lr)
    built = []
    for config in json.loads(schedulers):
        cls = PARAM_SCHEDULERS.get(config.pop('type'))
        if config.pop('convert_to_iter_based', False):
            built.append(
                cls.build_iter_from_epoch(optimizer=group, **config, epoch_length=epoch_length)
            )
        else:
            built.append(cls(optimizer=group, **config))
    by_iteration = [s for s in built if not s.by_epoch]
    by_epoch = [s for s in built if s.by_epoch]
    curve = np.empty(iterations)
    group.step()  # once: the schedulers warn without it, and only they change the rate
    for t in range(iterations):
        curve[t] = group.param_groups[0]['lr']
        for scheduler in by_iteration:
            scheduler.step()
        if (t + 1) % epoch_length == 0:
            for scheduler in by_epoch:
                scheduler.step()
    return curve
