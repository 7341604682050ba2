"""tools/migrate_config.py: the 51 official configs become ours, and users' deviations are not lost.

The official configs themselves are not part of this repository. All 51 are made from the table of
official settings, four are written by hand; with a checkout of the official repository the real
ones are taken too:

    INTERNIMAGE_OFFICIAL_ROOT=/path/to/InternImage python -m pytest tests/configs/test_migration.py
"""

import copy
import functools
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from release import ours, zoo
from release.compare import Explanations, differences, listing
from release.normal import normal
from release.old_style import BY_HAND, DINO, MASK2FORMER, MASK_RCNN, UPERNET, old_style
from tool_runner import load_tool

from internimage_mm.commands import UserError
from internimage_mm.migration import migrate_config, read_old_config

OFFICIAL_ROOT = os.environ.get('INTERNIMAGE_OFFICIAL_ROOT')
OFFICIAL = zoo.DETECTION + zoo.SEGMENTATION
CB_DINO = 'detection/configs/coco/dino_4scale_cbinternimage_h_objects365_coco_ss.py'
SOURCES = {
    'table': (old_style, OFFICIAL),
    'by hand': (BY_HAND.get, list(BY_HAND)),
    'official': (
        lambda official: read_old_config(str(Path(OFFICIAL_ROOT, official))),
        OFFICIAL if OFFICIAL_ROOT else [],
    ),
}

tool = load_tool('migrate_config')


def written(migration):
    """The new config, read back from its text."""
    variables = {}
    exec(migration.text('A header.'), variables)
    return Config({key: variables[key] for key in migration.config})


@functools.cache
def differences_to_ours(source, official):
    old = SOURCES[source][0](official)
    before = copy.deepcopy(old)
    migration = migrate_config(old)
    assert old == before
    assert migration.report.problems == []
    return differences(normal(written(migration)), normal(ours.load(official)))


@pytest.mark.parametrize(
    ('source', 'official'), [(key, path) for key, (_, paths) in SOURCES.items() for path in paths]
)
def test_old_config_becomes_ours(source, official):
    found = differences_to_ours(source, official)
    left = Explanations('migration').unexplained(official, found)
    assert not left, '\n' + listing(left)


def test_every_explanation_is_needed():
    explanations = Explanations('migration')
    for official in OFFICIAL:
        explanations.unexplained(official, differences_to_ours('table', official))
    assert explanations.unused() == []


@pytest.mark.parametrize('official', [MASK_RCNN, DINO, CB_DINO, UPERNET, MASK2FORMER])
def test_new_model_builds(official):
    cfg = written(migrate_config(old_style(official)))
    with ours.default_scope(cfg), torch.device('meta'):
        model = MODELS.build(cfg.model)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    expected = ours.build_on_meta(official).state_dict()
    assert shapes == {name: tuple(value.shape) for name, value in expected.items()}


@pytest.fixture
def old():
    """Mask R-CNN, to be changed."""
    return old_style(MASK_RCNN)


def problems(old):
    return dict(migrate_config(old).report.problems)


def put(old, place, value):
    """Set ``place``, 'data.train.pipeline.2.my_option', of an old config."""
    *way, last = (int(key) if key.isdigit() else key for key in place.split('.'))
    for key in way:
        old = old[key]
    old[last] = value


OTHER = {'type': 'Normalize', 'mean': [0.0] * 3, 'std': [1.0] * 3, 'to_rgb': True}
HEAD = 'model.bbox_head'
TRANSFORMER = f'{HEAD}.transformer'
ENCODER = f'{TRANSFORMER}.encoder.transformerlayers'
STEPS = 'data.train.pipeline'


@pytest.mark.parametrize(
    ('official', 'place', 'value', 'named', 'word'),
    [
        (MASK_RCNN, f'{STEPS}.2.my_option', 3, 'train_pipeline[2].Resize.my_option', '3'),
        (MASK_RCNN, f'{STEPS}.4', OTHER, 'train_pipeline.Normalize', 'differ'),
        (MASK_RCNN, 'custom_hooks', [{'type': 'MyHook'}], 'custom_hooks[0]', 'MyHook'),
        (MASK_RCNN, 'custom_hooks', [{'type': 'EMAHook'}], 'custom_hooks[0]', 'warm-up'),
        (MASK_RCNN, 'workflow', [('train', 1), ('val', 1)], 'workflow', 'val'),
        (MASK_RCNN, 'some_new_thing', 1, 'some_new_thing', '1'),
        (MASK_RCNN, 'custom_imports', {'imports': ['my_package']}, 'custom_imports', 'my_package'),
        (CB_DINO, 'lr_config.step', [8, 11], 'lr_config.by_epoch', 'iterations'),
        (UPERNET, f'{STEPS}.1.reduce_zero_label', False, 'data.train.reduce_zero_label', 'False'),
        (UPERNET, 'model.type', 'MyDecoder', 'model.type', 'MyDecoder'),
        (DINO, f'{HEAD}.my_option', 1, f'{HEAD}.my_option', '1'),
        (DINO, f'{TRANSFORMER}.two_stage_num_proposals', 300, None, '300 with 900 queries'),
        (DINO, f'{ENCODER}.operation_order', ('ffn', 'norm'), None, 'ffn norm'),
    ],
)
def test_setting_without_counterpart_is_named(official, place, value, named, word):
    old = old_style(official)
    put(old, place, value)
    ((setting, why),) = problems(old).items()
    assert setting == (named or place) and word in why


def test_unknown_transform_is_named(old):
    old['data']['train']['pipeline'].insert(3, {'type': 'MyMosaic', 'size': 640})
    migration = migrate_config(old)
    ((setting, why),) = migration.report.problems
    assert setting == 'train_pipeline[3].MyMosaic' and 'size' in why
    kinds = ' '.join(step['type'] for step in migration.config['train_pipeline'])
    assert kinds == 'LoadImageFromFile LoadAnnotations Resize RandomFlip PackDetInputs'


@pytest.mark.parametrize('removed', ['RandomFlip', 'Normalize', 'Pad'])
def test_removed_step_stays_removed(old, removed):
    for part in (
        old['data']['train']['pipeline'],
        old['data']['test']['pipeline'][1]['transforms'],
    ):
        part[:] = [step for step in part if step['type'] != removed]
    migration = migrate_config(old)
    assert migration.report.problems == []
    preprocessor = migration.config['model']['data_preprocessor']
    assert ('mean' in preprocessor) == (removed != 'Normalize')
    assert preprocessor['pad_size_divisor'] == (1 if removed == 'Pad' else 32)
    assert any(setting == 'Normalize' for setting, _ in migration.report.notes) == (
        removed == 'Normalize'
    )
    flips = [step for step in migration.config['train_pipeline'] if step['type'] == 'RandomFlip']
    assert len(flips) == (removed != 'RandomFlip')


def test_custom_data_set_and_classes(old):
    for split in ('train', 'val', 'test'):
        old['data'][split].update(type='MyDataset', classes=('cat', 'dog'))
    migration = migrate_config(old)
    assert {setting for setting, _ in migration.report.problems} == {
        f'data.{split}.type' for split in ('train', 'val', 'test')
    }
    dataset = migration.config['train_dataloader']['dataset']
    assert dataset['type'] == 'MyDataset'
    assert dataset['metainfo'] == {'classes': ('cat', 'dog')}


def test_data_set_outside_of_the_data_root(old):
    old['data']['train'].update(ann_file='/other/train.json', img_prefix='/other/images/')
    dataset = migrate_config(old).config['train_dataloader']['dataset']
    assert 'data_root' not in dataset
    assert dataset['ann_file'] == '/other/train.json'
    assert dataset['data_prefix'] == {'img': '/other/images/'}


def test_validation_may_have_a_pipeline_of_its_own(old):
    old['data']['val'] = copy.deepcopy(old['data']['val'])
    old['data']['val']['pipeline'][1]['img_scale'] = (640, 480)
    config = migrate_config(old).config
    for split, scale in (('val', (640, 480)), ('test', (1333, 800))):
        assert config[f'{split}_pipeline'][1]['scale'] == scale
        assert config[f'{split}_dataloader']['dataset']['pipeline'] == f'{split}_pipeline'


def test_a_list_of_data_sets_is_concatenated(old):
    first = old['data']['train']
    old['data']['train'] = [first, {**first, 'ann_file': 'data/coco/annotations/extra.json'}]
    migration = migrate_config(old)
    assert migration.report.problems == []
    dataset = migration.config['train_dataloader']['dataset']
    assert dataset['type'] == 'ConcatDataset'
    files = [inner['ann_file'] for inner in dataset['datasets']]
    assert files == ['annotations/instances_train2017.json', 'annotations/extra.json']
    # One pipeline for all of them: another one would be lost.
    old['data']['train'][1]['pipeline'] = first['pipeline'][:-1]
    assert 'several pipelines' in problems(old)['data.train']


def test_incomplete_part_is_named():
    old = old_style(DINO)
    del old['model']['bbox_head']['transformer']['encoder']['transformerlayers']
    with pytest.raises(UserError, match='model of the old config is incomplete'):
        migrate_config(old)


def test_optimizer_hooks(old):
    scale = {'init_scale': 512}
    old['fp16'] = {'loss_scale': scale}
    old['optimizer_config'] = {'type': 'GradientCumulativeOptimizerHook', 'cumulative_iters': 4}
    migration = migrate_config(old)
    assert migration.report.problems == []
    new = {'type': 'AmpOptimWrapper', 'loss_scale': scale, 'accumulative_counts': 4}
    assert new.items() <= migration.config['optim_wrapper'].items()


def test_top_level_settings(old):
    old.update(find_unused_parameters=True, seed=3)
    config = migrate_config(old).config
    assert config['find_unused_parameters'] is True
    assert config['randomness'] == {'seed': 3}


def test_schedules(old):
    old['lr_config'] = {'policy': 'CosineAnnealing', 'min_lr': 1e-6}
    (cosine,) = migrate_config(old).config['param_scheduler']
    assert cosine['type'] == 'CosineAnnealingLR' and cosine['T_max'] == 12
    old['lr_config'] = {'policy': 'step', 'step': 4, 'warmup': 'constant', 'warmup_iters': 10}
    warm_up, step = migrate_config(old).config['param_scheduler']
    end = {'by_epoch': False, 'begin': 0, 'end': 11}
    assert warm_up == {'type': 'ConstantLR', 'factor': 0.1, **end}
    assert step['type'] == 'StepLR' and step['step_size'] == 4
    old['lr_config'] = {'policy': 'OneCycle', 'max_lr': 0.01, 'warmup': 'exp', 'warmup_iters': 9}
    assert set(problems(old)) == {'lr_config.policy', 'lr_config.warmup', 'lr_config.max_lr'}


def test_backbone_that_is_no_preset_is_kept(old):
    old['model']['backbone']['depths'] = [1, 1, 2, 1]
    backbone = migrate_config(old).config['model']['backbone']
    assert 'arch' not in backbone and backbone['depths'] == [1, 1, 2, 1]


class TestCommand:
    """The command line."""

    @pytest.fixture
    def old_file(self, tmp_path):
        path = tmp_path / 'old' / 'config.py'
        path.parent.mkdir()
        # The two thirds and the rest in two files: _base_ is resolved from the old tree.
        settings = old_style(MASK_RCNN)
        base = {key: settings.pop(key) for key in ('model', 'data')}
        base, settings = (Config(c, format_python_code=False).pretty_text for c in (base, settings))
        (path.parent / 'base.py').write_text(f'{base}\n')
        path.write_text(f"_base_ = './base.py'\n{settings}\n")
        return path

    def test_writes_a_config(self, old_file, tmp_path, capsys):
        new = tmp_path / 'sub' / 'new.py'
        assert tool.main([str(old_file), str(new)]) == 0
        assert f'wrote {new}' in capsys.readouterr().out
        text = new.read_text()
        assert text.startswith('# Translated from config.py') and '_base_' not in text
        found = differences(normal(Config.fromfile(new)), normal(ours.load(MASK_RCNN)))
        assert not Explanations('migration').unexplained(MASK_RCNN, found)

    def test_exit_code_and_list_of_what_is_missing(self, old_file, tmp_path, capsys):
        with old_file.open('a') as file:
            file.write("custom_hooks = [dict(type='MyHook')]\n")
        assert tool.main([str(old_file), str(tmp_path / 'new.py')]) == tool.INCOMPLETE == 3
        output = capsys.readouterr().out
        assert 'not translated' in output and 'custom_hooks[0]' in output and 'MyHook' in output

    def refused(self, *arguments):
        with pytest.raises(SystemExit) as error:
            tool.main([str(argument) for argument in arguments])
        assert str(error.value).startswith('error: ')
        return str(error.value)

    def test_new_exists(self, old_file, tmp_path):
        new = tmp_path / 'new.py'
        new.write_text('keep = 1\n')
        assert '--overwrite' in self.refused(old_file, new)
        assert new.read_text() == 'keep = 1\n'
        assert tool.main([str(old_file), str(new), '--overwrite']) == 0
        assert new.read_text() != 'keep = 1\n'

    def test_new_cannot_be_written(self, old_file, tmp_path):
        folder, file = tmp_path / 'folder.py', tmp_path / 'file'
        folder.mkdir()
        file.write_text('keep\n')
        for options in ([], ['--overwrite']):
            assert 'folder.py cannot be written' in self.refused(old_file, folder, *options)
            assert 'file cannot be a folder' in self.refused(old_file, file / 'new.py', *options)
        assert file.read_text() == 'keep\n'

    def test_what_is_no_old_config_is_refused(self, old_file, tmp_path):
        new, text, yaml = tmp_path / 'new.py', old_file.read_text(), tmp_path / 'old.yaml'
        yaml.write_text('DATA: {}\n')
        shipped = zoo.ROOT / zoo.models()[MASK_RCNN]['Config']
        assert 'old config itself' in self.refused(old_file, old_file)
        assert old_file.read_text() == text
        assert 'something.py' in self.refused(old_file, tmp_path / 'new')
        assert 'does not exist' in self.refused(tmp_path / 'no.py', new)
        assert 'classification' in self.refused(yaml, new)
        assert 'already' in self.refused(shipped, new)
        (old_file.parent / 'base.py').unlink()
        assert 'leave it where it is in that tree' in self.refused(old_file, new)
        old_file.write_text('runner = dict(max_epochs=3)\n')
        assert 'no model and no data' in self.refused(old_file, new)
        old_file.write_text('model = dict(\n')
        assert 'not valid Python' in self.refused(old_file, new)
        assert not new.exists()

    @pytest.mark.parametrize('file', ['config.py', 'base.py'])
    def test_code_that_raises(self, old_file, tmp_path, file):
        with old_file.with_name(file).open('a') as opened:
            opened.write('a = [1][3]\n')
        message = self.refused(old_file, tmp_path / 'new.py')
        assert f'{old_file} (or one of its _base_' in message
        assert message.endswith('raises IndexError: list index out of range')
