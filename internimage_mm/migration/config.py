"""The whole config: which part goes where, the schedule and the runtime."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .data import (
    Pipeline,
    best_metric,
    leaves,
    migrate_dataset,
    migrate_evaluator,
    migrate_loaders,
    migrate_pipeline,
    migrate_preprocessor,
    multi_scale_test,
    test_steps,
)
from .files import Name, check_old_style, format_config
from .models import backbone_depths, migrate_model
from .settings import Report, Settings, shorten

# Hooks that kept name and arguments.
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
    """Top-level keys in reading order; values may be :class:`~.files.Name`."""
    report: Report

    def text(self, header: str = '') -> str:
        """The config as a Python file."""
        return format_config(self.config, header)


def migrate_config(old: dict) -> Migration:
    """Translate a config of mmdet 2.x or mmseg 0.x, with ``_base_`` resolved.

    Args:
        old: Plain dicts, as :func:`~.files.read_old_config` gives them; it is not changed.

    Raises:
        UserError: It is no whole config of the old stack, or a part of it is incomplete.
    """
    check_old_style(old)
    report = Report()
    top = Settings(old, '', report)
    scope = 'mmseg' if 'decode_head' in old['model'] else 'mmdet'
    with _part('runner'):
        by_epoch, total = _length(top)
    with _part('data'):
        data, preprocessor = _data(top, scope, by_epoch)
    with _part('model'):
        model = migrate_model(top.section('model'), preprocessor)
    with _part('evaluation'):
        evaluation = top.section('evaluation')
        evaluators, best = _evaluators(evaluation, data, scope)
        loops = _loops(data, by_epoch, total, evaluation.take('interval', 1))
    with _part('the schedule'):
        wrapper = _optimizer(top, backbone_depths(model['backbone']))
        schedule = _schedule(top.section('lr_config'), by_epoch, total)
    with _part('the hooks and the runtime'):
        hooks = _custom_hooks(top)
        runtime = _runtime(top, scope, by_epoch, {**best, **evaluation.keep('rule')})
    room = {'mmdet': 'internimage_mm.det', 'mmseg': 'internimage_mm.seg'}[scope]
    config = {
        'default_scope': scope,
        'custom_imports': {'imports': ['internimage_mm', room], 'allow_failed_imports': False},
        'model': model,
        **data,
        **evaluators,
        **loops,
        'optim_wrapper': wrapper,
        'param_scheduler': schedule,
        **({'custom_hooks': hooks} if hooks else {}),
        **runtime,
    }
    for kind in ('dataloader', 'evaluator'):
        if f'test_{kind}' in config and config[f'test_{kind}'] == config.get(f'val_{kind}'):
            config[f'test_{kind}'] = Name(f'val_{kind}')
    top.close()
    return Migration(config, report)


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
        if split not in data:
            continue
        found: list[list[dict]] = []
        olds = data.sections(split)
        datasets[split] = migrate_dataset(olds, scope, root, split == 'train', found)
        steps[split] = found[0]
        if any(other != found[0] for other in found):
            data.problem(split, 'its data sets have several pipelines; all of them get the first')
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
    annotations = _ground_truth(train, scope)
    if scope == 'mmseg' and 'train' in datasets:
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


def _ground_truth(train: Pipeline, scope: str) -> dict:
    """The ground truth of a test is what training uses."""
    if scope == 'mmseg':
        return train.annotations or {'type': 'LoadAnnotations'}
    masks = {'with_mask': True} if train.annotations.get('with_mask') else {}
    return {'type': 'LoadAnnotations', 'with_bbox': True, **masks}


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


def _evaluators(old: Settings, data: dict, scope: str) -> tuple[dict, dict]:
    """The evaluators, and what the checkpoint hook keeps the best of."""
    metric, best = old.take('metric'), old.take('save_best')
    options = old.keep('classwise proposal_nums iou_thrs metric_items')
    new = {
        f'{split}_evaluator': migrate_evaluator(
            metric, options, data[f'{split}_dataloader']['dataset'], scope
        )
        for split in ('val', 'test')
        if f'{split}_dataloader' in data
    }
    for name in options:
        if any(name not in evaluator for evaluator in new.values()):
            old.note(name, 'it is of COCO and LVIS only')
    if best and 'val_evaluator' in new:
        best = best_metric(best, new['val_evaluator'])
    return new, {'save_best': best} if best else {}


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
    constructor = optimizer.pop('constructor', None)
    paramwise = optimizer.pop('paramwise_cfg', None)
    wrapper: dict[str, Any] = {'type': 'OptimWrapper', 'optimizer': optimizer}
    if constructor not in (None, 'DefaultOptimizerConstructor'):
        wrapper['constructor'] = constructor
        if constructor not in _CONSTRUCTORS:
            why = (
                f'{constructor} is kept by name; it must be ported to '
                'mmengine.registry.OPTIM_WRAPPER_CONSTRUCTORS'
            )
            old.problem('optimizer.constructor', why)
    if paramwise:
        found = {'num_layers': sum(depths), 'depths': depths}
        wrapper['paramwise_cfg'] = {
            key: value
            for key, value in paramwise.items()
            if key not in found or value != found[key]
        }

    config = old.section('optimizer_config')
    kind = config.take('type', 'OptimizerHook')
    if kind not in _OPTIMIZER_HOOKS.split():
        config.problem('type', f'no rule for the optimizer hook {kind}')
    if clip := config.take('grad_clip'):
        wrapper['clip_grad'] = clip
    fp16 = old.take('fp16')
    if 'Fp16' in kind:
        fp16 = {**(fp16 or {}), **config.keep('loss_scale')}
    if kind.startswith('GradientCumulative'):
        wrapper['accumulative_counts'] = config.take('cumulative_iters', 1)
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
    by_epoch = lr.take('by_epoch', True)
    unit = {'by_epoch': by_epoch, 'begin': 0}
    main: list[dict] = []
    if policy == 'step':
        step, gamma = lr.take('step'), lr.take('gamma', 0.1)
        if isinstance(step, int):
            main = [{'type': 'StepLR', **unit, 'end': total, 'step_size': step, 'gamma': gamma}]
        elif step:
            end = {**unit, 'end': total}
            main = [{'type': 'MultiStepLR', **end, 'milestones': list(step), 'gamma': gamma}]
    elif policy == 'poly':
        curve = {'eta_min': lr.take('min_lr', 0.0), 'power': lr.take('power', 1.0)}
        main = [{'type': 'PolyLR', **curve, **unit, 'end': total + 1}]
    elif policy in ('CosineAnnealing', 'cosine'):
        low = lr.keep('min_lr_ratio>eta_min_ratio') or {'eta_min': lr.take('min_lr', 0.0)}
        main = [{'type': 'CosineAnnealingLR', **low, **unit, 'T_max': total, 'end': total}]
    elif policy != 'fixed':
        lr.problem('policy', f'no rule for the policy {policy!r}')
    if main and by_epoch and not by_epoch_loop:
        # In an iteration loop the old counter of epochs was that of the data loader.
        why = f'{policy} by epochs in a training of {total} iterations; give it in iterations'
        lr.problem('by_epoch', why)
        main = []
    return [*_warm_up(lr), *main]


def _warm_up(lr: Settings) -> list[dict]:
    kind = lr.take('warmup')
    iters, ratio = lr.take('warmup_iters', 0), lr.take('warmup_ratio', 0.1)
    end = {'by_epoch': lr.take('warmup_by_epoch', False), 'begin': 0, 'end': iters + 1}
    if kind is None:
        return []
    if end['by_epoch']:
        end.update(end=iters, convert_to_iter_based=True)
        lr.note('warmup_by_epoch', 'the warm-up reaches its end one iteration earlier')
    if kind == 'linear':
        return [{'type': 'LinearLR', 'start_factor': ratio, **end}]
    if kind == 'constant':
        return [{'type': 'ConstantLR', 'factor': ratio, **end}]
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
    new = {'type': 'EMAHook', 'momentum': hook.take('momentum', 0.0002)}
    if kind == 'ExpMomentumEMAHook':
        new.update(ema_type='ExpMomentumEMA', gamma=hook.take('total_iter', 2000))
    else:
        hook.problem('', f'the warm-up ({hook.take("warm_up", 100)}) of its momentum')
    return {**new, 'update_buffers': not hook.take('skip_buffers', False), **hook.keep('interval')}


def _runtime(old: Settings, scope: str, by_epoch: bool, best: dict) -> dict:
    """Logging, checkpoints, process settings: the part every config has."""
    saving = old.section('checkpoint_config')
    checkpoint = {
        'type': 'CheckpointHook',
        'interval': saving.take('interval', 1),
        **({} if by_epoch else {'by_epoch': False}),
        **saving.keep('max_keep_ckpts save_last save_optimizer out_dir'),
        **best,
    }
    logging = old.section('log_config')
    interval = logging.take('interval', 10)
    backends = [{'type': 'LocalVisBackend'}]
    for hook in logging.sections('hooks', logging.take('hooks') or []):
        if (kind := hook.take('type')) in _LOG_HOOKS:
            backends.append({'type': _LOG_HOOKS[kind], **hook.keep('init_kwargs')})
        elif kind != 'TextLoggerHook':
            hook.problem('', f'no rule for the log hook {kind} {shorten(hook.rest())}')
    by_iter = {} if by_epoch else {'log_metric_by_epoch': False}
    prefix = {'mmdet': 'Det', 'mmseg': 'Seg'}[scope]
    new: dict[str, Any] = {
        'default_hooks': {
            'timer': {'type': 'IterTimerHook'},
            'logger': {'type': 'LoggerHook', 'interval': interval, **by_iter},
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
        new.update(load_from=resume, resume=True)
        old.note('resume_from', 'a checkpoint of the old stack has no state to resume from')
    seed = {key: value for key, value in old.keep('seed deterministic').items() if value}
    if seed:
        new['randomness'] = seed
    imports = old.section('custom_imports').take('imports') or []
    for module in [imports] if isinstance(imports, str) else imports:
        if module.split('.')[0] not in _OFFICIAL_MODULES:
            why = f'{module}: port it to mmengine, then add it to the new config'
            old.problem('custom_imports', why)
    return {**new, **old.keep('work_dir find_unused_parameters auto_scale_lr')}
