"""Optimizer, learning-rate schedule, training loop and hooks."""

from typing import Any

from .report import Report, Settings, shorten

# Hooks that kept name and arguments.
_SAME_HOOKS: dict[str, tuple[str, ...]] = {
    'CheckInvalidLossHook': ('interval',),
    'EmptyCacheHook': ('before_epoch', 'after_epoch', 'after_iter'),
    'NumClassCheckHook': (),
    'SetEpochInfoHook': (),
    'SyncNormHook': (),
}
_OFFICIAL_MODULES = ('mmcv_custom', 'mmdet_custom', 'mmseg_custom')


def migrate_optimizer(old: Settings, depths: list[int], report: Report) -> dict:
    """``optimizer``, ``optimizer_config`` and ``fp16`` -> ``optim_wrapper``.

    ``depths`` are those of the backbone: layer decay finds them by itself.
    """
    optimizer = dict(old.take('optimizer') or {})
    constructor = optimizer.pop('constructor', None)
    paramwise = optimizer.pop('paramwise_cfg', None)
    wrapper: dict[str, Any] = {'type': 'OptimWrapper', 'optimizer': optimizer}
    if constructor not in (None, 'DefaultOptimizerConstructor'):
        wrapper['constructor'] = constructor
        known = ('CustomLayerDecayOptimizerConstructor', 'LearningRateDecayOptimizerConstructor')
        if constructor not in known:
            report.problem(
                'optimizer.constructor',
                f'{constructor} is kept by name; it must be ported to '
                'mmengine.registry.OPTIM_WRAPPER_CONSTRUCTORS',
            )
    if paramwise:
        for key, found in (('num_layers', sum(depths)), ('depths', depths)):
            if paramwise.get(key) == found:
                paramwise = {k: v for k, v in paramwise.items() if k != key}
        wrapper['paramwise_cfg'] = paramwise

    config = old.section('optimizer_config')
    kind = config.take('type', 'OptimizerHook')
    if clip := config.take('grad_clip'):
        wrapper['clip_grad'] = clip
    half = old.take('fp16')
    if kind in ('Fp16OptimizerHook', 'GradientCumulativeFp16OptimizerHook'):
        half = {**(half or {}), **config.take_existing('loss_scale')}
    if kind.startswith('GradientCumulative'):
        wrapper['accumulative_counts'] = config.take('cumulative_iters', 1)
    config.ignore('distributed', why='mmengine finds out by itself')
    plain = ('OptimizerHook', 'Fp16OptimizerHook', 'DistOptimizerHook')
    if kind not in plain and not kind.startswith('GradientCumulative'):
        report.problem('optimizer_config.type', f'no rule for the optimizer hook {kind}')
    config.close()
    if half is not None:
        wrapper['type'] = 'AmpOptimWrapper'
        # mmcv's default is a fixed scale of 512.
        wrapper['loss_scale'] = half.get('loss_scale', 512.0)
        report.note('fp16', 'AmpOptimWrapper: training by autocast instead of a half model')
    return wrapper


def migrate_schedule(old: Settings, by_epoch_loop: bool, total: int, report: Report) -> list[dict]:
    """``lr_config`` -> ``param_scheduler``.

    Warm-up and schedule both start at 0, so that their factors multiply as in mmcv. mmengine's
    schedulers reach their last value at iteration ``end - 1``, mmcv at the one after: hence + 1.

    Args:
        old: The whole old config.
        by_epoch_loop: Whether training is counted in epochs.
        total: Epochs or iterations of the training.
        report: Takes what has no counterpart.
    """
    lr = old.section('lr_config')
    policy = str(lr.take('policy', 'fixed')).removesuffix('LrUpdaterHook')
    by_epoch = lr.take('by_epoch', True)
    unit = {'by_epoch': by_epoch, 'begin': 0}
    if by_epoch and not by_epoch_loop and policy != 'fixed':
        # In an iteration loop the old counter of epochs was that of the data loader.
        if policy != 'step' or lr.take('step'):
            report.problem(
                'lr_config.by_epoch',
                f'{policy} by epochs in a training of {total} iterations; give it in iterations',
            )
        lr.ignore('gamma', why='there is no step')
        schedulers = []
    else:
        schedulers = _main_schedule(lr, policy, unit, total)
    return [*_warm_up(lr), *_closed(lr, schedulers)]


def _main_schedule(lr: Settings, policy: str, unit: dict, total: int) -> list[dict]:
    if policy == 'step':
        step, gamma = lr.take('step'), lr.take('gamma', 0.1)
        if isinstance(step, int):
            return [{'type': 'StepLR', **unit, 'end': total, 'step_size': step, 'gamma': gamma}]
        if not step:
            return []
        end = {**unit, 'end': total}
        return [{'type': 'MultiStepLR', **end, 'milestones': list(step), 'gamma': gamma}]
    if policy == 'poly':
        curve = {'eta_min': lr.take('min_lr', 0.0), 'power': lr.take('power', 1.0)}
        return [{'type': 'PolyLR', **curve, **unit, 'end': total + 1}]
    if policy in ('CosineAnnealing', 'cosine'):
        low = (
            {'eta_min_ratio': lr.take('min_lr_ratio')}
            if 'min_lr_ratio' in lr
            else {'eta_min': lr.take('min_lr', 0.0)}
        )
        return [{'type': 'CosineAnnealingLR', **low, **unit, 'T_max': total, 'end': total}]
    if policy != 'fixed':
        lr.report.problem('lr_config.policy', f'no rule for the policy {policy!r}')
    return []


def _warm_up(lr: Settings) -> list[dict]:
    kind = lr.take('warmup')
    iters, ratio = lr.take('warmup_iters', 0), lr.take('warmup_ratio', 0.1)
    by_epoch = lr.take('warmup_by_epoch', False)
    if kind is None:
        return []
    end = {'by_epoch': by_epoch, 'begin': 0, 'end': iters + 1}
    if by_epoch:
        end.update(end=iters, convert_to_iter_based=True)
        lr.report.note(
            'lr_config.warmup_by_epoch', 'the warm-up reaches its end one iteration earlier'
        )
    if kind == 'linear':
        return [{'type': 'LinearLR', 'start_factor': ratio, **end}]
    if kind == 'constant':
        return [{'type': 'ConstantLR', 'factor': ratio, **end}]
    lr.report.problem('lr_config.warmup', f'mmengine has no counterpart of {kind!r}')
    return []


def _closed(lr: Settings, schedulers: list[dict]) -> list[dict]:
    lr.close()
    return schedulers


def migrate_runner(old: Settings, report: Report) -> tuple[bool, int]:
    """``runner`` (or ``total_epochs``, ``total_iters``) -> (counted in epochs?, how many)."""
    runner = old.section('runner')
    kind = runner.take('type', 'EpochBasedRunner')
    epochs = runner.take('max_epochs', old.take('total_epochs'))
    iters = runner.take('max_iters', old.take('total_iters'))
    runner.close()
    if kind not in ('EpochBasedRunner', 'IterBasedRunner'):
        report.problem('runner.type', f'{kind}; the usual training loop is used instead')
    if iters is not None:
        return False, iters
    if epochs is None:
        report.problem('runner', 'it gives neither max_epochs nor max_iters; 12 epochs are used')
        epochs = 12
    return True, epochs


def migrate_custom_hooks(old: Settings, report: Report) -> list[dict]:
    """``custom_hooks``: the EMA hooks are translated, hooks of both stacks kept."""
    hooks = []
    for index, config in enumerate(old.take('custom_hooks') or []):
        hook = Settings(config, f'custom_hooks[{index}]', report)
        kind = hook.take('type')
        priority = hook.take_existing('priority')
        if kind in ('ExpMomentumEMAHook', 'LinearMomentumEMAHook', 'EMAHook'):
            hooks.append({**_ema(kind, hook), **priority})
        elif kind in _SAME_HOOKS:
            hooks.append({'type': kind, **hook.take_existing(*_SAME_HOOKS[kind]), **priority})
        else:
            report.problem(
                hook.path, f'the hook {kind} has to be ported to mmengine: {shorten(config)}'
            )
            continue
        hook.close()
    return hooks


def _ema(kind: str, hook: Settings) -> dict:
    """mmcv's and mmdet 2's moving averages.

    ``ExpMomentumEMA`` of mmdet 3 has the curve (1 - m) exp(-(1 + t) / gamma) + m of the old hook;
    the old hooks average buffers as well, unless told otherwise.
    """
    new = {'type': 'EMAHook', 'momentum': hook.take('momentum', 0.0002)}
    if kind == 'ExpMomentumEMAHook':
        new.update(ema_type='ExpMomentumEMA', gamma=hook.take('total_iter', 2000))
    else:
        warm_up = hook.take('warm_up', 100)
        hook.report.problem(hook.path, f'the warm-up ({warm_up}) of its momentum')
    new['update_buffers'] = not hook.take('skip_buffers', False)
    new.update(hook.take_existing('interval'))
    hook.ignore('resume_from', None, why='--resume restores the average')
    return new


def migrate_runtime(old: Settings, scope: str, by_epoch: bool, report: Report) -> dict:
    """Logging, checkpoints, process settings: the part every config has."""
    evaluation = old.section('evaluation')
    checkpoint = {'type': 'CheckpointHook', **_checkpoint(old, by_epoch)}
    if best := evaluation.take('save_best'):
        checkpoint['save_best'] = best
        checkpoint.update(evaluation.take_existing('rule'))
    interval, backends = _logging(old, report)
    logger: dict[str, Any] = {'type': 'LoggerHook', 'interval': interval}
    if not by_epoch:
        logger['log_metric_by_epoch'] = False
    prefix = {'mmdet': 'Det', 'mmseg': 'Seg'}[scope]
    runtime: dict[str, Any] = {
        'default_hooks': {
            'timer': {'type': 'IterTimerHook'},
            'logger': logger,
            'param_scheduler': {'type': 'ParamSchedulerHook'},
            'checkpoint': checkpoint,
            'sampler_seed': {'type': 'DistSamplerSeedHook'},
            'visualization': {'type': f'{prefix}VisualizationHook'},
        },
        'env_cfg': {
            'cudnn_benchmark': old.take('cudnn_benchmark', False),
            'mp_cfg': {
                'mp_start_method': old.take('mp_start_method', 'fork'),
                'opencv_num_threads': old.take('opencv_num_threads', 0),
            },
            'dist_cfg': {'backend': 'nccl', **(old.take('dist_params') or {})},
        },
        'visualizer': {
            'type': f'{prefix}LocalVisualizer',
            'vis_backends': backends,
            'name': 'visualizer',
        },
        'log_processor': {'type': 'LogProcessor', 'window_size': interval, 'by_epoch': by_epoch},
        'log_level': old.take('log_level', 'INFO'),
        'load_from': old.take('load_from'),
        'resume': False,
    }
    if (resume := old.take('resume_from')) is not None:
        runtime.update(load_from=resume, resume=True)
        report.note('resume_from', 'a checkpoint of the old stack has no state to resume from')
    seed = {
        key: value
        for key in ('seed', 'deterministic')
        if (value := old.take(key)) not in (None, False)
    }
    if seed:
        runtime['randomness'] = seed
    runtime.update(old.take_existing('work_dir', 'find_unused_parameters', 'auto_scale_lr'))
    if (workflow := old.take('workflow', [('train', 1)])) != [('train', 1)]:
        report.problem('workflow', f'{workflow}: mmengine has only training with validation')
    _custom_imports(old, report)
    return runtime


def _checkpoint(old: Settings, by_epoch: bool) -> dict:
    config = old.section('checkpoint_config')
    new = {'interval': config.take('interval', 1), 'by_epoch': config.take('by_epoch', by_epoch)}
    # An iteration runner counted in iterations, whatever by_epoch said.
    new['by_epoch'] = by_epoch
    new.update(config.take_existing('max_keep_ckpts', 'save_last', 'save_optimizer', 'out_dir'))
    if by_epoch:
        del new['by_epoch']
    config.ignore('create_symlink', why='mmengine writes the file last_checkpoint')
    config.ignore('meta', why='mmengine saves the config by itself')
    config.close()
    return new


def _logging(old: Settings, report: Report) -> tuple[int, list[dict]]:
    config = old.section('log_config')
    interval = config.take('interval', 10)
    backends = [{'type': 'LocalVisBackend'}]
    for index, values in enumerate(config.take('hooks') or []):
        hook = Settings(values, f'log_config.hooks[{index}]', report)
        kind = hook.take('type')
        hook.take('by_epoch')
        if kind in ('TensorboardLoggerHook', 'WandbLoggerHook', 'MMDetWandbHook'):
            backend = 'Wandb' if 'Wandb' in kind else 'Tensorboard'
            backends.append({'type': f'{backend}VisBackend', **hook.take_existing('init_kwargs')})
        elif kind != 'TextLoggerHook':
            report.problem(hook.path, f'no rule for the log hook {kind}')
            continue
        hook.close()
    config.close()
    return interval, backends


def _custom_imports(old: Settings, report: Report) -> None:
    custom = old.section('custom_imports')
    custom.take('allow_failed_imports')
    imports = custom.take('imports') or []
    for module in [imports] if isinstance(imports, str) else imports:
        if module.split('.')[0] not in _OFFICIAL_MODULES:
            report.problem(
                'custom_imports', f'{module}: port it to mmengine, then add it to the new config'
            )
    custom.close()
