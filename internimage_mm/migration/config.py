"""The whole config: which part goes where, the schedule and the runtime."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .config_file import Name, check_old_style, format_config
from .data import (
    Pipeline,
    leaves,
    migrate_dataset,
    migrate_evaluation,
    migrate_loaders,
    migrate_pipeline,
    migrate_preprocessor,
    multi_scale_test,
    test_steps,
)
from .models import backbone_depths, migrate_model
from .settings import Report, Settings, shorten

# Hook -> its arguments, in the notation of Settings.keep. These kept their name.
_HOOKS = {
    'CheckInvalidLossHook': 'interval',
    'EmptyCacheHook': 'before_epoch after_epoch after_iter',
    'NumClassCheckHook': '',
    'SetEpochInfoHook': '',
    'SyncNormHook': '',
}
_LOG_HOOKS = {
    'MMDetWandbHook': 'WandbVisBackend',
    'TensorboardLoggerHook': 'TensorboardVisBackend',
    'WandbLoggerHook': 'WandbVisBackend',
}
_OPTIMIZER_HOOKS = (
    'OptimizerHook DistOptimizerHook Fp16OptimizerHook GradientCumulativeOptimizerHook '
    'GradientCumulativeFp16OptimizerHook'
)
_CONSTRUCTORS = ('CustomLayerDecayOptimizerConstructor', 'LearningRateDecayOptimizerConstructor')
_OFFICIAL_MODULES = ('mmcv_custom', 'mmdet_custom', 'mmseg_custom')


@dataclass
class Migration:
    """A translated config."""

    config: dict[str, Any]
    """Top-level keys in reading order; values may be :class:`~.config_file.Name`."""
    report: Report

    def text(self, header: str = '') -> str:
        """The config as a Python file."""
        return format_config(self.config, header)


def migrate_config(old: dict) -> Migration:
    """Translate a config of mmdet 2.x or mmseg 0.x, with ``_base_`` resolved.

    Args:
        old: Plain dicts, as :func:`~.config_file.read_old_config` gives them; it is not changed.

    Raises:
        UserError: It is no whole config of the old stack, or a part of it is incomplete.
    """
    check_old_style(old)
    top = Settings(old, '', Report())
    scope = 'mmseg' if 'decode_head' in old['model'] else 'mmdet'
    room = {'mmdet': 'internimage_mm.det', 'mmseg': 'internimage_mm.seg'}[scope]
    imports = dict(imports=['internimage_mm', room], allow_failed_imports=False)
    with _part('runner'):
        by_epoch, total = _length(top)
    with _part('data'):
        data, preprocessor = _data(top, scope, by_epoch)
    with _part('model'):
        model = migrate_model(top.section('model'), preprocessor)
    with _part('evaluation'):
        evaluation = top.section('evaluation')
        evaluators, best = migrate_evaluation(evaluation, data, scope)
        loops = _loops(data, by_epoch, total, evaluation.take('interval', 1))
    with _part('the schedule'):
        wrapper = _optimizer(top, backbone_depths(model['backbone']))
        schedule = _schedule(top.section('lr_config'), by_epoch, total)
    with _part('the hooks and the runtime'):
        hooks = _custom_hooks(top)
        runtime = _runtime(top, scope, by_epoch, {**best, **evaluation.keep('rule')})
    config = dict(
        default_scope=scope,
        custom_imports=imports,
        model=model,
        **data,
        **evaluators,
        **loops,
        optim_wrapper=wrapper,
        param_scheduler=schedule,
        **({'custom_hooks': hooks} if hooks else {}),
        **runtime,
    )
    for kind in ('dataloader', 'evaluator'):
        if f'test_{kind}' in config and config[f'test_{kind}'] == config.get(f'val_{kind}'):
            config[f'test_{kind}'] = Name(f'val_{kind}')
    top.close()
    return Migration(config, top.report)


@contextmanager
def _part(name: str) -> Iterator[None]:
    """Say which part of the old config is not as the old stack needs it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            f'{name} of the old config is incomplete or not in the form of the old stack: '
            f'{type(error).__name__}: {error}'
        ) from error


def _length(old: Settings) -> tuple[bool, int]:
    """``runner`` (or ``total_epochs``, ``total_iters``) -> (counted in epochs?, how many)."""
    runner = old.section('runner')
    kind = runner.take('type', 'EpochBasedRunner')
    epochs = runner.take('max_epochs', old.take('total_epochs'))
    iters = runner.take('max_iters', old.take('total_iters'))
    if kind not in ('EpochBasedRunner', 'IterBasedRunner'):
        runner.problem('type', f'{kind}; the usual training loop is used instead')
    if iters is None and epochs is None:
        runner.problem('', 'it gives neither max_epochs nor max_iters; 12 epochs are used')
    return (True, epochs or 12) if iters is None else (False, iters)


def _data(top: Settings, scope: str, by_epoch: bool) -> tuple[dict[str, Any], dict]:
    """Pipelines, data loaders and the test-time augmentation; and the ``data_preprocessor``."""
    data, root, report = top.section('data'), top.take('data_root'), top.report
    datasets: dict[str, dict] = {}
    steps: dict[str, list[dict]] = {'train': [], 'test': []}
    for split in ('train', 'val', 'test'):
        if split in data:
            datasets[split] = migrate_dataset(data.sections(split), scope, root, split == 'train')
            steps[split], *others = [leaf['pipeline'] for leaf in leaves(datasets[split])]
            if any(other != steps[split] for other in others):
                why = 'its data sets have several pipelines; all of them get the first'
                data.problem(split, why)
    if steps.get('val') in ([], steps['test']):
        del steps['val']
    pipelines = {
        split: migrate_pipeline(steps[split], f'{split}_pipeline', scope, report)
        for split in ('train', 'test', 'val')
        if split in steps
    }
    for split, dataset in datasets.items():
        for leaf in leaves(dataset):
            leaf['pipeline'] = Name(f'{split if split in pipelines else "test"}_pipeline')

    train, test = pipelines.pop('train'), pipelines['test']
    # The ground truth of a test is what training uses.
    annotations = train.annotations or {'type': 'LoadAnnotations'}
    if scope == 'mmdet':
        masks = {'with_mask': True} if train.annotations.get('with_mask') else {}
        annotations = dict(type='LoadAnnotations', with_bbox=True, **masks)
    elif 'train' in datasets:
        _check_zero_label(data, datasets['train'], train)
    new: dict[str, Any] = {'train_pipeline': train.transforms}
    for split, pipeline in pipelines.items():
        kind = leaves(datasets[split])[0]['type'] if split in datasets else ''
        new[f'{split}_pipeline'] = test_steps(pipeline, annotations, scope, kind)
    new.update(migrate_loaders(data, datasets, scope, by_epoch))
    new.update(multi_scale_test(test, annotations, scope))
    if test.flips:
        new['test_with_tta'] = True
        why = 'validation is at one scale, tools/test.py at all of them'
        report.notes.append(('test_pipeline', why))
    return new, migrate_preprocessor(train, test, scope, report)


def _check_zero_label(data: Settings, dataset: dict, train: Pipeline) -> None:
    """Both the data set and LoadAnnotations had a reduce_zero_label; now they must agree."""
    transform = train.annotations.get('reduce_zero_label', False)
    for leaf in leaves(dataset):
        if leaf.get('reduce_zero_label', False) != transform:
            why = (
                f'{leaf["type"]} has {not transform}, LoadAnnotations {transform}: in '
                f'the new stack the data set rules ({shorten(leaf["data_prefix"])})'
            )
            data.problem('train.reduce_zero_label', why)


def _loops(data: dict, by_epoch: bool, total: int, interval: int) -> dict[str, dict]:
    loop = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    length = {'max_epochs' if by_epoch else 'max_iters': total, 'val_interval': interval}
    others = {'val': 'ValLoop', 'test': 'TestLoop'}
    found = {f'{k}_cfg': {'type': v} for k, v in others.items() if f'{k}_dataloader' in data}
    return {'train_cfg': {'type': loop, **length}, **found}


def _optimizer(old: Settings, depths: list[int]) -> dict:
    """``optimizer``, ``optimizer_config`` and ``fp16`` -> ``optim_wrapper``.

    ``depths`` are those of the backbone: layer decay finds them by itself.
    """
    optimizer = dict(old.take('optimizer') or {})
    constructor = optimizer.pop('constructor', 'DefaultOptimizerConstructor')
    paramwise = optimizer.pop('paramwise_cfg', None)
    wrapper: dict[str, Any] = dict(type='OptimWrapper', optimizer=optimizer)
    if constructor not in (None, 'DefaultOptimizerConstructor'):
        wrapper['constructor'] = constructor
        if constructor not in _CONSTRUCTORS:
            why = (
                f'{constructor} is kept by name; it must be ported to '
                'mmengine.registry.OPTIM_WRAPPER_CONSTRUCTORS'
            )
            old.problem('optimizer.constructor', why)
    if paramwise:
        found = {'num_layers': sum(depths), 'depths': depths}.items()
        wrapper['paramwise_cfg'] = dict(item for item in paramwise.items() if item not in found)

    config, fp16 = old.section('optimizer_config'), old.take('fp16')
    kind = config.take('type', 'OptimizerHook')
    if kind not in _OPTIMIZER_HOOKS.split():
        config.problem('type', f'no rule for the optimizer hook {kind}')
    if clip := config.take('grad_clip'):
        wrapper['clip_grad'] = clip
    if 'Fp16' in kind:
        fp16 = {**(fp16 or {}), **config.keep('loss_scale')}
    if kind.startswith('GradientCumulative'):
        wrapper.update(config.keep('cumulative_iters>accumulative_counts=1'))
    if fp16 is not None:
        # mmcv's default is a fixed scale of 512.
        wrapper.update(type='AmpOptimWrapper', loss_scale=fp16.get('loss_scale', 512.0))
        old.note('fp16', 'AmpOptimWrapper: training by autocast instead of a half model')
    return wrapper


def _schedule(lr: Settings, by_epoch_loop: bool, total: int) -> list[dict]:
    """``lr_config`` -> ``param_scheduler``.

    Warm-up and schedule both start at 0, so that their factors multiply as in mmcv. mmengine's
    schedulers reach their last value at iteration ``end - 1``, mmcv at the one after: hence + 1.
    """
    policy = str(lr.take('policy', 'fixed')).removesuffix('LrUpdaterHook')
    unit = {**lr.keep('by_epoch=True'), 'begin': 0}
    main: list[dict] = []
    match policy:
        case 'step':
            step, gamma, unit['end'] = lr.take('step'), lr.keep('gamma=0.1'), total
            if isinstance(step, int):
                main = [dict(type='StepLR', **unit, step_size=step, **gamma)]
            elif step:
                main = [dict(type='MultiStepLR', **unit, milestones=list(step), **gamma)]
        case 'poly':
            curve = lr.keep('min_lr>eta_min=0.0 power=1.0')
            main = [dict(type='PolyLR', **curve, **unit, end=total + 1)]
        case 'CosineAnnealing' | 'cosine':
            low = lr.keep('min_lr_ratio>eta_min_ratio') or lr.keep('min_lr>eta_min=0.0')
            main = [dict(type='CosineAnnealingLR', **low, **unit, T_max=total, end=total)]
        case _ if policy != 'fixed':
            lr.problem('policy', f'no rule for the policy {policy!r}')
    if main and unit['by_epoch'] and not by_epoch_loop:
        # In an iteration loop the old counter of epochs was that of the data loader.
        why = f'{policy} by epochs in a training of {total} iterations; give it in iterations'
        lr.problem('by_epoch', why)
        main = []
    return [*_warm_up(lr), *main]


def _warm_up(lr: Settings) -> list[dict]:
    kind = lr.take('warmup')
    iters, ratio = lr.take('warmup_iters', 0), lr.take('warmup_ratio', 0.1)
    end = {**lr.keep('warmup_by_epoch>by_epoch=False'), 'begin': 0, 'end': iters + 1}
    if kind is None:
        return []
    if end['by_epoch']:
        end.update(end=iters, convert_to_iter_based=True)
        lr.note('warmup_by_epoch', 'the warm-up reaches its end one iteration earlier')
    if kind == 'linear':
        return [dict(type='LinearLR', start_factor=ratio, **end)]
    if kind == 'constant':
        return [dict(type='ConstantLR', factor=ratio, **end)]
    lr.problem('warmup', f'mmengine has no counterpart of {kind!r}')
    return []


def _custom_hooks(old: Settings) -> list[dict]:
    """The EMA hooks are translated, hooks of both stacks kept."""
    hooks = []
    for hook in old.sections('custom_hooks', old.take('custom_hooks') or []):
        kind, priority = hook.take('type'), hook.keep('priority')
        if kind in ('ExpMomentumEMAHook', 'LinearMomentumEMAHook', 'EMAHook'):
            hooks.append({**_ema(kind, hook), **priority})
        elif kind in _HOOKS:
            hooks.append({'type': kind, **hook.keep(_HOOKS[kind]), **priority})
        else:
            hook.problem('', f'the hook {kind} must be ported to mmengine: {shorten(hook.rest())}')
    return hooks


def _ema(kind: str, hook: Settings) -> dict:
    """mmcv's and mmdet 2's moving averages.

    ``ExpMomentumEMA`` of mmdet 3 has the curve (1 - m) exp(-(1 + t) / gamma) + m of the old hook;
    the old hooks average buffers as well, unless told otherwise.
    """
    new = dict(type='EMAHook', **hook.keep('momentum=0.0002'))
    if kind == 'ExpMomentumEMAHook':
        new.update(ema_type='ExpMomentumEMA', **hook.keep('total_iter>gamma=2000'))
    else:
        hook.problem('', f'the warm-up ({hook.take("warm_up", 100)}) of its momentum')
    return {**new, 'update_buffers': not hook.take('skip_buffers', False), **hook.keep('interval')}


def _runtime(old: Settings, scope: str, by_epoch: bool, best: dict) -> dict:
    """Logging, checkpoints, process settings: the part every config has."""
    prefix = {'mmdet': 'Det', 'mmseg': 'Seg'}[scope]
    saving, logging = old.section('checkpoint_config'), old.section('log_config')
    checkpoint = dict(type='CheckpointHook', **saving.keep('interval=1'))
    checkpoint.update({} if by_epoch else {'by_epoch': False})
    checkpoint.update(saving.keep('max_keep_ckpts save_last save_optimizer out_dir'), **best)
    interval = logging.take('interval', 10)
    backends = [dict(type='LocalVisBackend')]
    for hook in logging.sections('hooks', logging.take('hooks') or []):
        if (kind := hook.take('type')) in _LOG_HOOKS:
            backends.append(dict(type=_LOG_HOOKS[kind], **hook.keep('init_kwargs')))
        elif kind != 'TextLoggerHook':
            hook.problem('', f'no rule for the log hook {kind} {shorten(hook.rest())}')
    by_iter = {} if by_epoch else {'log_metric_by_epoch': False}
    new: dict[str, Any] = dict(
        default_hooks=dict(
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=interval, **by_iter),
            param_scheduler=dict(type='ParamSchedulerHook'),
            checkpoint=checkpoint,
            sampler_seed=dict(type='DistSamplerSeedHook'),
            visualization=dict(type=f'{prefix}VisualizationHook'),
        ),
        env_cfg=dict(
            **old.keep('cudnn_benchmark=False'),
            mp_cfg=old.keep("mp_start_method='fork' opencv_num_threads=0"),
            dist_cfg={'backend': 'nccl', **(old.take('dist_params') or {})},
        ),
        visualizer=dict(type=f'{prefix}LocalVisualizer', vis_backends=backends, name='visualizer'),
        log_processor=dict(type='LogProcessor', window_size=interval, by_epoch=by_epoch),
        **old.keep("log_level='INFO' load_from=None"),
        resume=False,
    )
    if (resume := old.take('resume_from')) is not None:
        new.update(load_from=resume, resume=True)
        old.note('resume_from', 'a checkpoint of the old stack has no state to resume from')
    if seed := {key: value for key, value in old.keep('seed deterministic').items() if value}:
        new['randomness'] = seed
    imports = old.section('custom_imports').take('imports') or []
    for module in [imports] if isinstance(imports, str) else imports:
        if module.split('.')[0] not in _OFFICIAL_MODULES:
            why = f'{module}: port it to mmengine, then add it to the new config'
            old.problem('custom_imports', why)
    return {**new, **old.keep('work_dir find_unused_parameters auto_scale_lr')}
