"""The whole config: which part goes where."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .datasets import (
    best_metric,
    check_zero_label,
    leaves,
    migrate_dataset,
    migrate_evaluator,
    migrate_loaders,
)
from .models import backbone_depths, migrate_model
from .pipelines import (
    Pipeline,
    migrate_pipeline,
    migrate_preprocessor,
    migrate_test_pipeline,
    multi_scale_test,
    with_ground_truth,
)
from .reader import check_old_style
from .report import Report, Settings, shorten
from .schedules import (
    migrate_custom_hooks,
    migrate_optimizer,
    migrate_runner,
    migrate_runtime,
    migrate_schedule,
)
from .writer import Name, format_config

_ROOM = {'mmdet': 'internimage_mm.det', 'mmseg': 'internimage_mm.seg'}
# Without effect of their own: other settings of the old config were made of them.
_HELPERS = {
    'classes',
    'crop_size',
    'data_root',
    'dataset_type',
    'depths',
    'img_norm_cfg',
    'img_scale',
    'norm_cfg',
    'num_classes',
    'num_stuff_classes',
    'num_things_classes',
    'pretrained',
    'test_pipeline',
    'train_pipeline',
    'val_pipeline',
}


@dataclass
class Migration:
    """A translated config."""

    config: dict[str, Any]
    """Top-level keys in reading order; values may be :class:`~.writer.Name`."""
    report: Report

    def text(self, header: str = '') -> str:
        """The config as a Python file."""
        return format_config(self.config, header)


def migrate_config(old: dict) -> Migration:
    """Translate a config of mmdet 2.x or mmseg 0.x, with ``_base_`` resolved.

    Args:
        old: Plain dicts, as :func:`~.reader.read_old_config` gives them; it is not changed.

    Raises:
        UserError: It is no whole config of the old stack, or a part of it is incomplete.
    """
    check_old_style(old)
    report = Report()
    top = Settings(old, '', report)
    scope = 'mmseg' if 'decode_head' in old['model'] else 'mmdet'
    config: dict[str, Any] = {
        'default_scope': scope,
        'custom_imports': {
            'imports': ['internimage_mm', _ROOM[scope]],
            'allow_failed_imports': False,
        },
    }
    with _part('runner'):
        by_epoch, total = migrate_runner(top, report)
    with _part('the pipelines in data'):
        train, tests = _pipelines(old['data'], scope, report)
        preprocessor = migrate_preprocessor(train, tests['test'], scope, report)
    with _part('model'):
        config['model'] = migrate_model(top.section('model'), preprocessor, scope, report)
    with _part('data'):
        datasets = _datasets(top, config, train, tests, scope, by_epoch, report)
    with _part('evaluation'):
        interval, save_best = _evaluation(top, config, datasets, scope, report)
    with _part('the schedule'):
        config.update(_loops(datasets, by_epoch, total, interval))
        depths = backbone_depths(config['model']['backbone'])
        config['optim_wrapper'] = migrate_optimizer(top, depths, report)
        config['param_scheduler'] = migrate_schedule(top, by_epoch, total, report)
    with _part('the hooks and the runtime'):
        if hooks := migrate_custom_hooks(top, report):
            config['custom_hooks'] = hooks
        config.update(migrate_runtime(top, scope, by_epoch, report))
    if save_best is not None:
        config['default_hooks']['checkpoint']['save_best'] = save_best
    _close(top, report)
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


def _pipelines(data: dict, scope: str, report: Report) -> tuple[Pipeline, dict[str, Pipeline]]:
    """The training pipeline, and those of test and validation by split."""
    train = migrate_pipeline(_old_pipeline(data, 'train', report), 'train_pipeline', scope, report)
    olds = {split: _old_pipeline(data, split, report) for split in ('test', 'val')}
    tests = {
        split: migrate_test_pipeline(steps, f'{split}_pipeline', scope, report)
        for split, steps in olds.items()
        if split == 'test' or steps not in ([], olds['test'])
    }
    return train, tests


def _old_pipeline(data: dict, split: str, report: Report) -> list[dict]:
    """The pipeline of the innermost data sets: that of a wrapper was not used."""
    pipelines = [leaf.get('pipeline') or [] for leaf in _old_leaves(data.get(split))]
    if any(pipeline != pipelines[0] for pipeline in pipelines):
        report.problem(
            f'data.{split}', 'its data sets have several pipelines; all of them get the first'
        )
    return pipelines[0] if pipelines else []


def _old_leaves(dataset: Any) -> list[dict]:
    if isinstance(dataset, (list, tuple)):
        return [leaf for inner in dataset for leaf in _old_leaves(inner)]
    if not dataset:
        return []
    inner = dataset.get('datasets') or dataset.get('dataset')
    return _old_leaves(inner) if inner else [dataset]


def _datasets(
    top: Settings,
    config: dict[str, Any],
    train: Pipeline,
    tests: dict[str, Pipeline],
    scope: str,
    by_epoch: bool,
    report: Report,
) -> dict[str, dict]:
    """Put pipelines and data loaders into ``config``; returns the data sets by split."""
    data, root = top.section('data'), top.peek().get('data_root')
    datasets = {}
    for split in ('train', 'val', 'test'):
        if split in data:
            own = split if split == 'train' or split in tests else 'test'
            name = Name(f'{own}_pipeline')
            section = data.datasets(split)
            datasets[split] = migrate_dataset(section, scope, root, name, split == 'train', report)
    if scope == 'mmseg' and 'train' in datasets:
        check_zero_label(datasets['train'], train.annotations, report)

    annotations, test = _test_annotations(train, scope), tests['test']
    config['train_pipeline'] = train.transforms
    for split, pipeline in sorted(tests.items()):
        kind = leaves(datasets[split])[0]['type'] if split in datasets else ''
        steps = with_ground_truth(pipeline.transforms, annotations, scope, kind)
        config[f'{split}_pipeline'] = steps
    config.update(
        (f'{split}_dataloader', loader)
        for split, loader in migrate_loaders(data, datasets, scope, by_epoch, report).items()
    )
    _once(config, 'dataloader')
    if test.flips or (scope == 'mmseg' and any(s['type'] == 'Resize' for s in test.transforms)):
        config['tta_model'], config['tta_pipeline'] = multi_scale_test(test, annotations, scope)
    if test.flips:
        config['test_with_tta'] = True
        report.note('test_pipeline', 'validation is at one scale, tools/test.py at all of them')
    return datasets


def _once(config: dict[str, Any], kind: str) -> None:
    """Refer to what validation has where the test has the same."""
    if f'test_{kind}' in config and config[f'test_{kind}'] == config.get(f'val_{kind}'):
        config[f'test_{kind}'] = Name(f'val_{kind}')


def _evaluation(
    top: Settings, config: dict[str, Any], datasets: dict[str, dict], scope: str, report: Report
) -> tuple[int, str | None]:
    """Put the evaluators into ``config``; returns interval and the metric to keep the best of."""
    evaluation = top.section('evaluation')
    for split in ('val', 'test'):
        if split in datasets:
            evaluator = migrate_evaluator(evaluation, datasets[split], scope, report)
            config[f'{split}_evaluator'] = evaluator
    best = evaluation.take('save_best')
    if 'val_evaluator' in config:
        best = best_metric(best, config['val_evaluator'])
    _once(config, 'evaluator')
    interval = evaluation.take('interval', 1)
    _close_evaluation(evaluation)
    return interval, best


def _loops(datasets: dict, by_epoch: bool, total: int, interval: int) -> dict[str, dict]:
    loop = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    length = {'max_epochs' if by_epoch else 'max_iters': total, 'val_interval': interval}
    loops: dict[str, dict] = {'train_cfg': {'type': loop, **length}}
    if 'val' in datasets:
        loops['val_cfg'] = {'type': 'ValLoop'}
    if 'test' in datasets:
        loops['test_cfg'] = {'type': 'TestLoop'}
    return loops


def _test_annotations(train: Pipeline, scope: str) -> dict:
    """The ground truth of a test is what training uses."""
    if scope == 'mmdet':
        with_mask = (train.annotations or {}).get('with_mask', False)
        masks = {'with_mask': True} if with_mask else {}
        return {'type': 'LoadAnnotations', 'with_bbox': True, **masks}
    return train.annotations or {'type': 'LoadAnnotations'}


def _close_evaluation(evaluation: Settings) -> None:
    for key in ('metric', 'classwise', 'proposal_nums', 'iou_thrs', 'metric_items'):
        evaluation.take(key)
    for key in ('pre_eval', 'by_epoch', 'gpu_collect', 'efficient_test'):
        evaluation.take(key)  # how, not what
    evaluation.close()


def _close(top: Settings, report: Report) -> None:
    """Variables of the old config are no settings; anything else is reported."""
    for key in top.peek():
        if key in _HELPERS:
            top.take(key)
        else:
            value = shorten(top.take(key))
            report.problem(key, f'{value}: no rule; of no account if it is only a variable')
