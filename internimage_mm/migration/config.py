"""The whole config: which part goes where."""

from dataclasses import dataclass
from typing import Any

from .datasets import (
    best_metric,
    check_zero_label,
    leaves,
    migrate_dataset,
    migrate_evaluator,
    migrate_loaders,
)
from .models import migrate_model
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
        UserError: It is no whole config of the old stack.
    """
    check_old_style(old)
    report = Report()
    top = Settings(old, '', report)
    scope = 'mmseg' if 'decode_head' in old['model'] else 'mmdet'
    by_epoch, total = migrate_runner(top, report)
    data = top.section('data')

    train = _train_pipeline(old['data'].get('train'), scope, report)
    test = _test_pipeline(old['data'].get('test') or old['data'].get('val'), scope, report)
    annotations = _test_annotations(train, scope)
    config: dict[str, Any] = {
        'default_scope': scope,
        'custom_imports': {
            'imports': ['internimage_mm', _ROOM[scope]],
            'allow_failed_imports': False,
        },
        'model': migrate_model(
            top.section('model'), migrate_preprocessor(train, test, scope, report), scope, report
        ),
        'train_pipeline': train.transforms,
    }

    root = top.peek().get('data_root')
    datasets = {}
    for split in ('train', 'val', 'test'):
        if split not in data:
            continue
        pipeline = Name('train_pipeline' if split == 'train' else 'test_pipeline')
        section = data.section(split)
        datasets[split] = migrate_dataset(section, scope, root, pipeline, split == 'train', report)
    kind = next((leaves(datasets[k])[0]['type'] for k in ('test', 'val') if k in datasets), '')
    config['test_pipeline'] = with_ground_truth(test.transforms, annotations, scope, kind)
    if scope == 'mmseg' and 'train' in datasets:
        check_zero_label(datasets['train'], train.annotations, report)
    loaders = migrate_loaders(data, datasets, scope, by_epoch, report)
    evaluation = top.section('evaluation')
    evaluators = {
        split: migrate_evaluator(evaluation, datasets[split], scope, report)
        for split in ('val', 'test')
        if split in datasets
    }
    interval = evaluation.take('interval', 1)
    save_best = evaluation.take('save_best')
    _close_evaluation(evaluation)
    config.update({f'{split}_dataloader': loader for split, loader in loaders.items()})
    config.update({f'{split}_evaluator': value for split, value in evaluators.items()})
    for kind in ('dataloader', 'evaluator'):
        if config.get(f'test_{kind}', 0) == config.get(f'val_{kind}'):
            config[f'test_{kind}'] = Name(f'val_{kind}')
    if test.flips or (scope == 'mmseg' and test.transforms):
        config['tta_model'], config['tta_pipeline'] = multi_scale_test(test, annotations, scope)
    if test.flips:
        config['test_with_tta'] = True
        report.note('test_pipeline', 'validation is at one scale, tools/test.py at all of them')

    loop = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    length = {'max_epochs' if by_epoch else 'max_iters': total, 'val_interval': interval}
    config['train_cfg'] = {'type': loop, **length}
    if 'val' in datasets:
        config['val_cfg'] = {'type': 'ValLoop'}
    if 'test' in datasets:
        config['test_cfg'] = {'type': 'TestLoop'}
    config['optim_wrapper'] = migrate_optimizer(top, report)
    config['param_scheduler'] = migrate_schedule(top, by_epoch, total, report)
    if hooks := migrate_custom_hooks(top, report):
        config['custom_hooks'] = hooks
    config.update(migrate_runtime(top, scope, by_epoch, report))
    if 'val' in evaluators and (best := best_metric(save_best, evaluators['val'])):
        config['default_hooks']['checkpoint']['save_best'] = best
    _close(top, report)
    return Migration(config, report)


def _train_pipeline(dataset: dict | None, scope: str, report: Report) -> Pipeline:
    """The pipeline of the innermost data set: that of a wrapper was not used."""
    path = 'data.train'
    while dataset and ('dataset' in dataset or 'datasets' in dataset):
        inner = dataset.get('dataset')
        dataset, path = (inner, f'{path}.dataset') if inner else (dataset['datasets'][0], path)
    return migrate_pipeline((dataset or {}).get('pipeline') or [], 'train_pipeline', scope, report)


def _test_pipeline(dataset: dict | None, scope: str, report: Report) -> Pipeline:
    pipeline = (dataset or {}).get('pipeline') or []
    return migrate_test_pipeline(pipeline, 'test_pipeline', scope, report)


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
