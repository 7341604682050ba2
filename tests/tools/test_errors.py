"""Every mistake a user can make gets one clear line, before anything heavy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from internimage_mm import InternImage
from internimage_mm.commands import UserError, load_config

from .conftest import BASE, ROOT, error_of, load_tool, run_tool

QUICKSTART = ROOT / 'configs' / 'quickstart' / 'mask-rcnn_internimage-nano_mini-coco.py'


def test_one_line_and_exit_code_1():
    """In a real process: no traceback."""
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'test.py', 'no_such_config.py', 'x.pth'],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert 'error: config no_such_config.py does not exist' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.fixture(scope='module')
def places(tmp_path_factory, detector_config, segmentor_config, segmentor_run, mini_coco):
    """What the commands below name in braces; the rest is in ``folder``, where they run."""
    folder, trained = tmp_path_factory.mktemp('mistakes'), segmentor_run / 'iter_2.pth'
    weights = torch.load(trained, weights_only=False)['state_dict']
    backbone = {k: v for k, v in weights.items() if k.startswith('backbone.')}
    for name, content in {
        'heads': {k: v for k, v in weights.items() if k not in backbone},
        'no_bias': {k: v for k, v in weights.items() if k != 'backbone.levels.3.norm.0.bias'},
        'imagenet': {k.removeprefix('backbone.'): v for k, v in backbone.items()},
        'official': weights,
    }.items():
        torch.save({'state_dict': content, 'meta': {}}, folder / f'{name}.pth')
    (folder / 'cut.pth').write_bytes(trained.read_bytes()[:5000])
    (folder / 'empty.jpg').touch()
    (folder / 'text.jpg').write_text('no image')
    for name in ('fifo', 'fifo.png', 'fifo.pkl'):
        os.mkfifo(folder / name)
    return dict(
        folder=folder,
        detector=detector_config,
        segmentor=segmentor_config,
        trained=trained,
        image=next((mini_coco / 'val').glob('*.jpg')),
        configs=ROOT / 'configs',
        base=BASE,
        of_block=sum(k.startswith('backbone.levels.2.blocks.1.') for k in weights),
    )


MASK_RCNN = '{configs}/coco/mask-rcnn_internimage-t_fpn_1x_coco.py'
UPERNET = '{configs}/ade20k/upernet_internimage-t_8xb2-160k_ade20k-512x512.py'
CLASSIFIER = '{configs}/imagenet/internimage-t_8xb512_in1k-224.py'
# Command and what its error says; "..." stands for anything.
MISTAKES = [
    # Configs.
    ('train {configs}/coco/mask-rcnn_internimage-t_fpn_1x_cocoo.py',
     'cocoo.py does not exist; in {configs}/coco there are mask-rcnn_internimage-t_fpn_1x_coco.py'),
    ('image_demo {image} none.py x.pth --out o.png', 'config none.py does not exist'),
    ('train no/such/config.py', 'nor does the folder no/such'),
    ('train {base}/default_runtime_det.py', 'has no "model"'),
    # Models.
    ('train {detector} model.backbone.arch=enormous', 'cannot be built: ... enormous ... raised'),
    ('train {detector} model.backbone.groups=[1,3,4,8]', 'cannot be built: ... 3 groups'),
    ('train {detector} model.backbone.colour=blue', 'cannot be built: ... colour ... .py, line '),
    ('train {detector} model.backbone.type=Net', 'cannot be built: ... Net is not in the'),
    ('get_flops {detector} model.backbone.arch=foo', 'the model of the config cannot be built: '),
    ('get_flops {configs}/coco/dino-4scale_internimage-t_8xb2-12e_coco.py',
     'DINO cannot be counted'),
    # Options.
    ('test {segmentor} {trained} --tta', '--tta needs tta_pipeline in the config {segmentor}'),
    ('train {detector} --launcher slurm', '--launcher slurm: it has not started this process'),
    ('test {detector} x.pth --launcher pytorch', 'there is no RANK in the environment'),
    ('train {detector} --auto-scale-lr', 'needs auto_scale_lr=dict(base_batch_size=...)'),
    # Data.
    ('train {detector} train_dataloader.dataset.data_root=mini_coco',
     'train data needs mini_coco, which does not exist; ... python tools/make_mini_dataset.py'),
    (f'train {MASK_RCNN}', 'which does not exist; configs/coco/README.md'),
    (f'test {UPERNET} {{trained}}', 'which does not exist; configs/ade20k/README.md'),
    (f'train {CLASSIFIER} optim_wrapper.type=OptimWrapper',
     'data/imagenet ... which does not exist; configs/imagenet/README.md'),
    ('test {detector} {trained} test_evaluator.ann_file=none.json',
     'none.json, which does not exist'),
    # Checkpoints.
    ('test {segmentor} none.pth', 'none.pth does not exist'),
    ('test {segmentor} cut.pth', 'cut.pth is truncated or not a PyTorch checkpoint'),
    ('test {segmentor} {trained} model.backbone.channels=32 model.backbone.depths=[1,1,1,1] '
     'model.decode_head.in_channels=[32,64,128,256] model.auxiliary_head.in_channels=128',
     'iter_2.pth does not fit EncoderDecoder ... {of_block} weights of the file are unknown to the '
     'model: backbone.levels.2.blocks.1. ... '
     'backbone.patch_embed.conv1.weight (file (8, 3, 3, 3), model (16, 3, 3, 3)) ... '
     '16 channels, depths 1-1-2-1; the model 32 channels, depths 1-1-1-1'),
    ('test {segmentor} {trained} model.decode_head.num_classes=11',
     '2 weights have another shape: decode_head.conv_seg ... The backbone fits, the heads do not'),
    ('test {segmentor} heads.pth',
     'heads.pth has no weights for EncoderDecoder ... it has auxiliary_head, decode_head'),
    ('train {segmentor} load_from=heads.pth', 'heads.pth has no weights for EncoderDecoder'),
    ('test {segmentor} imagenet.pth', "init_cfg=dict(type='Pretrained'"),
    ('train {segmentor} load_from=no_bias.pth',
     'missing in the file: backbone.levels.3.norm.0.bias'),
    ('train {segmentor} model.backbone.init_cfg.type=Pretrained '
     'model.backbone.init_cfg.checkpoint=official.pth model.backbone.depths=[1,1,3,1]',
     'depths 1-1-2-1; the model 16 channels, depths 1-1-3-1'),
    ('train {segmentor} --resume official.pth',
     'cannot be resumed from: it has no training state, only state_dict, meta'),
    # Images.
    ('image_demo none.jpg {segmentor} x.pth --out o.png', 'image none.jpg does not exist'),
    ('image_demo empty.jpg {segmentor} x.pth --out o.png', 'empty.jpg is not an image'),
    ('image_demo text.jpg {segmentor} x.pth --out o.png', 'text.jpg is not an image'),
    ('image_demo {image} {segmentor} x.pth --out picture', '--out picture is not the name of an'),
    ('image_demo {image} {segmentor} x.pth --out o.xyz', '--out o.xyz is not the name of an image'),
    ('image_demo {image} {segmentor} x.pth --out o.png --tile 0', 'at least 1 pixel, got 0'),
    ('image_demo {image} {detector} x.pth --out o.png --score-thr 30', 'from 0 to 1, got 30'),
    ('image_demo {image} {segmentor} x.pth --out o.png --overlap 0.6', 'from 0 to 0.5, got 0.6'),
    ('image_demo {image} {segmentor} {trained} --out o.png model.backbone.depths=[1,1,3,1]',
     'depths 1-1-2-1; the model 16 channels, depths 1-1-3-1'),
    ('image_demo {image} {segmentor} {trained} --out o.png --device gpu', '--device gpu: Expected'),
    # What is there and cannot be written.
    ('image_demo {image} {segmentor} x.pth --out {image}', 'it is the file that is read'),
    ('image_demo {image} {segmentor} x.pth --out fifo/o.png', 'fifo cannot be a folder'),
    ('image_demo {image} {segmentor} x.pth --out fifo.png',
     'fifo.png cannot be written: it exists and is not a regular file'),
    ('test {segmentor} {trained} --out fifo.pkl', 'fifo.pkl cannot be written: it exists and'),
    ('test {segmentor} {trained} --show-dir fifo/a', 'fifo/a cannot be a folder: fifo exists'),
    ('test {segmentor} {trained} --work-dir fifo', 'fifo cannot be a folder: fifo exists'),
    ('export {segmentor} {trained} --out fifo/a.onnx', 'fifo cannot be a folder: fifo exists'),
    ('export {segmentor} {trained} --out a.onnx --paste-masks',
     'paste_masks needs a detector with a mask head'),
    ('train {segmentor} --work-dir fifo/a', 'fifo/a cannot be a folder: fifo exists and is none'),
]  # fmt: skip


@pytest.mark.parametrize(('command', 'expected'), MISTAKES)
def test_mistake(places, monkeypatch, command, expected):
    monkeypatch.chdir(places['folder'])
    words = command.format(**places).split()
    options = [word for word in words if '=' in word]
    message = error_of(*words[: len(words) - len(options)], options=options)
    parts = (re.escape(part.strip()) for part in expected.format(**places).split('...'))
    assert re.search('.*'.join(parts), message, re.DOTALL), message


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('x = = 1\n', r'c\.py .* is not valid Python: invalid syntax \(line 1: x = = 1\)'),
        ("_base_ = './nowhere.py'\n", r'c\.py cannot be read: .*nowhere\.py'),
        ("_base_ = __import__('internimage_mm').config_path('a/b')", 'there is no config a/b'),
        ("_base_ = 'internimage_mm::coco/x.py'", r'by its path: internimage_mm\.config_path'),
    ],
)
def test_config_that_cannot_be_read(tmp_path, text, expected):
    (tmp_path / 'c.py').write_text(text)
    assert re.search(expected, error_of('train', tmp_path / 'c.py'))


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--cfg-options', 'max_iters'], '--cfg-options takes KEY=VALUE pairs, got max_iters'),
        (['--out', 'x.json'], 'x.json must end in .pkl'),
    ],
)
def test_mistake_of_usage(arguments, expected, capsys):
    with pytest.raises(SystemExit) as error:
        load_tool('test').main(['config.py', 'x.pth', *arguments])
    assert error.value.code == 2
    assert expected in capsys.readouterr().err


def test_library_of_the_config_not_installed(monkeypatch, segmentor_config):
    find_spec = load_tool('train').load_config.__globals__['importlib'].util.find_spec
    monkeypatch.setattr(
        'internimage_mm.commands.configs.importlib.util.find_spec',
        lambda name, *args: None if name == 'mmseg' else find_spec(name, *args),
    )
    message = error_of('train', segmentor_config)
    assert 'needs mmseg: pip install "mmsegmentation==' in message


def test_traceback_on_request(detector_config, monkeypatch):
    monkeypatch.setenv('INTERNIMAGE_MM_TRACEBACK', '1')
    with pytest.raises(UserError) as error:
        run_tool('get_flops', detector_config, options=['model.backbone.arch=enormous'])
    assert isinstance(error.value.__cause__, ValueError)


@MODELS.register_module()
class _Buggy(InternImage):
    """A user's class with a mistake in its code, not in the config."""

    def __init__(self, bug, **settings):
        super().__init__(**settings)
        if bug == 'key':
            {}['missing']
        InternImage(arch=bug)


@pytest.mark.parametrize(('bug', 'error'), [('key', KeyError), ('tinny', ValueError)])
def test_bug_in_a_class_of_the_user_keeps_its_traceback(detector_config, bug, error):
    options = ['model.backbone.type=_Buggy', f'model.backbone.bug={bug}']
    with pytest.raises(error) as info:
        run_tool('get_flops', detector_config, options=options)
    assert any(entry.path == Path(__file__) for entry in info.traceback[1:])


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('modle.backbone.depths=[1,1]', 'has no modle; do you mean model?'),
        ('model.bakcbone.depths=[1,1]', 'there is no bakcbone .* do you mean backbone?'),
        ('lod_from=x.pth', 'do you mean load_from?'),
        ('model.backbone.archh=tiny', 'there is no archh .* do you mean arch?'),
        ('train_dataloader.batchsize=1', 'there is no batchsize .* do you mean batch_size?'),
        ('param_scheduler.7.end=3', 'Index 7 exceeds'),
        (
            'data_root=elsewhere/',
            'train_dataloader.dataset.data_root, val_dataloader.dataset.data_root, '
            'test_dataloader.dataset.data_root, val_evaluator.ann_file, test_evaluator.ann_file',
        ),
        (
            'max_epochs=4',
            'in train_cfg.max_epochs, train_cfg.val_interval, param_scheduler.1.T_max: set',
        ),
        ('metainfo.classes=[a]', 'train_dataloader.dataset.metainfo, val_dataloader'),
    ],
)
def test_option_that_nothing_reads(option, expected):
    message = error_of('train', QUICKSTART, options=[option])
    assert re.search(expected.replace('?', r'\?'), message), message


def test_option_that_is_new_to_the_config():
    options = {
        'sync_bn': 'torch',
        'param_scheduler.0.end': 9,
        'model.backbone.init_cfg.type': 'X',
        'model.backbone.drop_path_type': 'uniform',  # almost drop_path_rate, which is there
        'model.neck.norm_cfg.requires_grad': False,  # is taken out before the norm is built
    }
    cfg = load_config(str(QUICKSTART), options)
    assert cfg.sync_bn == 'torch' and cfg.param_scheduler[0].end == 9
    assert cfg.model.backbone.init_cfg.type == 'X'
    assert cfg.model.backbone.drop_path_type == 'uniform'
    assert cfg.model.neck.norm_cfg.requires_grad is False


# --- data -------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, mini_coco):
    """A data set that a test may change, and the option that points a training at it."""
    root = shutil.copytree(mini_coco, tmp_path / 'mini_coco')
    return root, [f'train_dataloader.dataset.data_root={root}']


@pytest.mark.parametrize('name', ['annotations/instances_train.json', 'train/'])
def test_missing_part_of_the_data(detector_config, copy, name):
    root, options = copy
    (root / name).rename(root / 'moved')
    message = error_of('train', detector_config, options=options)
    assert f'{root}/{name}, which does not exist' in message


def unknown_category(content):
    content['annotations'][0]['category_id'] = 77
    content['annotations'][1]['category_id'] = 99
    return json.dumps(content)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (
            unknown_category,
            'has objects of unknown category: category_id 77, 99.*define 1, 2, 3, 4, 5, 6',
        ),
        (
            lambda content: json.dumps(content).replace('star', 'asterisk'),
            'does not define the categories star of the config.*it defines asterisk, circle',
        ),
        (lambda content: json.dumps(content)[:-20], 'is not valid JSON'),
        (lambda content: '[]', 'is not in COCO format'),
    ],
    ids=['category', 'class', 'not JSON', 'not COCO'],
)
def test_wrong_annotations(detector_config, copy, change, expected):
    root, options = copy
    path = root / 'annotations' / 'instances_train.json'
    path.write_text(change(json.loads(path.read_text())))
    message = error_of('train', detector_config, options=options)
    assert re.search(rf'instances_train\.json {expected}', message), message


def test_some_of_the_categories_in_a_file(tmp_path, detector_config, monkeypatch, capfd):
    """Are fine. The file is read once, and the screen soon shows the first iteration."""
    read, load = [], json.load

    def counting(file, *args, **kwargs):
        read.append(Path(getattr(file, 'name', '')).name)
        return load(file, *args, **kwargs)

    monkeypatch.setattr(json, 'load', counting)
    run_tool(
        'train', detector_config, '--work-dir', tmp_path, options=[
            "train_dataloader.dataset.metainfo.classes=('circle',)", 'train_cfg.max_iters=1',
        ],
    )  # fmt: skip
    assert (tmp_path / 'iter_1.pth').is_file()
    assert read.count('instances_train.json') == 1
    screen = ''.join(capfd.readouterr())
    assert screen.split('Iter(train)')[0].count('\n') < 150
    # The rest is not lost.
    assert 'Hooks will be executed' in next(tmp_path.glob('*/*.log')).read_text()
    assert 'mask_roi_extractor' in (tmp_path / 'tiny_detector.py').read_text()
