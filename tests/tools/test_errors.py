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


# --- config -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'args', [('train', '{}'), ('test', '{}', 'x.pth'), ('image_demo', '{image}', '{}', 'x.pth')]
)
def test_wrong_config_path(tmp_path, mini_coco, args):
    image = next((mini_coco / 'val').glob('*.jpg'))
    wrong = ROOT / 'configs' / 'coco' / 'mask-rcnn_internimage-t_fpn_1x_cocoo.py'
    args = [arg.format(wrong, image=image) for arg in args]
    if args[0] == 'image_demo':
        args += ['--out', tmp_path / 'o.png']
    message = error_of(*args)
    assert f'config {wrong} does not exist' in message
    assert 'there are mask-rcnn_internimage-t_fpn_1x_coco.py' in message


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_malformed_option(tool, capsys):
    # The config is not read before the command line is understood.
    arguments = ['config.py', *['x.pth'] * (tool == 'test'), '--cfg-options', 'max_iters']
    with pytest.raises(SystemExit) as error:
        load_tool(tool).main(arguments)
    assert error.value.code == 2
    assert '--cfg-options takes KEY=VALUE pairs, got max_iters' in capsys.readouterr().err


def test_config_in_a_missing_folder():
    assert 'nor does the folder no/such' in error_of('train', 'no/such/config.py')


def test_config_with_a_syntax_error(tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict()\nx = = 1\n')
    message = error_of('train', tmp_path / 'broken.py')
    assert 'broken.py' in message
    assert 'is not valid Python: invalid syntax (line 2: x = = 1)' in message


def test_config_with_a_missing_base(tmp_path):
    (tmp_path / 'c.py').write_text("_base_ = './nowhere.py'\n")
    message = error_of('train', tmp_path / 'c.py')
    assert 'c.py cannot be read' in message
    assert 'nowhere.py' in message


def test_config_with_a_wrong_name_of_ours(tmp_path):
    base = "_base_ = __import__('internimage_mm').config_path('coco/mask-rcnn_t')"
    (tmp_path / 'c.py').write_text(base)
    assert 'there is no config coco/mask-rcnn_t' in error_of('train', tmp_path / 'c.py')


def test_config_that_inherits_ours_by_package(tmp_path):
    (tmp_path / 'c.py').write_text("_base_ = 'internimage_mm::coco/x.py'")
    message = error_of('train', tmp_path / 'c.py')
    assert "by its path: internimage_mm.config_path('...')" in message


def test_config_of_another_type(tmp_path):
    (tmp_path / 'c.txt').write_text('x')
    assert 'c.txt cannot be read' in error_of('train', tmp_path / 'c.txt')


def test_config_without_a_model():
    message = error_of('train', BASE / 'default_runtime_det.py')
    assert 'has no "model"' in message


def test_library_of_the_config_not_installed(monkeypatch, segmentor_config):
    find_spec = load_tool('train').load_config.__globals__['importlib'].util.find_spec
    monkeypatch.setattr(
        'internimage_mm.commands.configs.importlib.util.find_spec',
        lambda name, *args: None if name == 'mmseg' else find_spec(name, *args),
    )
    message = error_of('train', segmentor_config)
    assert 'needs mmseg: pip install "mmsegmentation==' in message


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('model.backbone.arch=enormous', 'enormous'),
        ('model.backbone.groups=[1,3,4,8]', '3'),
        ('model.backbone.colour=blue', 'colour'),
        ('model.backbone.type=InternImageX', 'InternImageX is not in the'),
    ],
)
def test_model_that_cannot_be_built(tmp_path, detector_config, option, expected):
    message = error_of('train', detector_config, '--work-dir', tmp_path, options=[option])
    assert 'the model of the config cannot be built' in message
    assert expected in message
    assert re.search(r'raised in .*\.py, line \d+', message)


def test_traceback_on_request(tmp_path, detector_config, monkeypatch):
    monkeypatch.setenv('INTERNIMAGE_MM_TRACEBACK', '1')
    with pytest.raises(UserError) as error:
        run_tool(
            'train', detector_config, '--work-dir', tmp_path,
            options=['model.backbone.arch=enormous'],
        )  # fmt: skip
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
    config = ROOT / 'configs' / 'quickstart' / 'mask-rcnn_internimage-nano_mini-coco.py'
    message = error_of('train', config, options=[option])
    assert re.search(expected.replace('?', r'\?'), message), message


def test_option_that_is_new_to_the_config(tmp_path, detector_config, monkeypatch):
    options = {'sync_bn': 'torch', 'model.backbone.init_cfg.type': 'X', 'param_scheduler.0.end': 9}
    cfg = load_config(str(detector_config), options)
    assert cfg.sync_bn == 'torch' and cfg.model.backbone.init_cfg.type == 'X'
    assert cfg.param_scheduler[0].end == 9


def test_out_is_not_a_pickle_file(detector_config, capsys):
    with pytest.raises(SystemExit) as exit_info:
        load_tool('test').main([str(detector_config), 'x.pth', '--out', 'x.json'])
    assert exit_info.value.code == 2
    assert 'x.json must end in .pkl' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('tool', 'option', 'expected'),
    [
        ('image_demo', '--out {}.png', ' cannot be written: it exists and is not a regular'),
        ('test', '--out {}.pkl', ' cannot be written: it exists and is not a regular file'),
        ('test', '--show-dir {}/pictures', '/pictures cannot be a folder: '),
        ('test', '--work-dir {}', ' cannot be a folder: '),
        ('train', '--work-dir {}', ' cannot be a folder: '),
    ],
)
def test_output_that_cannot_be(tmp_path, detector_config, mini_coco, tool, option, expected):
    """Refused before the checkpoint, which is none, is read."""
    option, path = option.format(tmp_path / 'fifo').split()
    os.mkfifo(path.removesuffix('/pictures'))
    args = {'train': (), 'test': (mini_coco / 'mini_dataset.json',)}.get(tool, ('x.pth',))
    image = [next((mini_coco / 'val').glob('*.jpg'))] if tool == 'image_demo' else []
    message = error_of(tool, *image, detector_config, *args, option, path)
    assert f'{path.removesuffix("/pictures")}{expected}' in message


def test_tta_without_settings(segmentor_config, segmentor_run):
    message = error_of('test', segmentor_config, segmentor_run / 'iter_2.pth', '--tta')
    assert '--tta needs tta_pipeline in the config' in message
    assert str(segmentor_config) in message


def test_amp_without_gpu(monkeypatch, detector_config):
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cpu')
    assert '--amp needs a GPU' in error_of('train', detector_config, '--amp')


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_launcher_without_gpu(monkeypatch, detector_config, launcher):
    monkeypatch.setattr('internimage_mm.commands.reporting.get_device', lambda: 'cpu')
    for args in (('train', detector_config), ('test', detector_config, 'x.pth')):
        message = error_of(*args, '--launcher', launcher)
        assert f'--launcher {launcher} needs a GPU for each process' in message


def test_auto_scale_lr_without_base(detector_config):
    message = error_of('train', detector_config, '--auto-scale-lr')
    assert 'needs auto_scale_lr=dict(base_batch_size=...)' in message


# --- data -------------------------------------------------------------------------------------


def test_missing_mini_data_says_how_to_make_it(tmp_path, detector_config):
    root = tmp_path / 'mini_coco'
    message = error_of(
        'train', detector_config, options=[f'train_dataloader.dataset.data_root={root}']
    )
    assert f'the train data needs {root}, which does not exist' in message
    assert 'python tools/make_mini_dataset.py' in message


@pytest.mark.parametrize(
    ('config', 'missing'),
    [
        ('coco/mask-rcnn_internimage-t_fpn_1x_coco.py', 'coco'),
        ('ade20k/upernet_internimage-t_8xb2-160k_ade20k-512x512.py', 'ade20k'),
    ],
)
def test_missing_real_data_says_where_to_get_it(tmp_path, monkeypatch, config, missing):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / 'x.pth'
    torch.save({}, checkpoint)
    for args in (
        ('train', ROOT / 'configs' / config),
        ('test', ROOT / 'configs' / config, checkpoint),
    ):
        message = error_of(*args)
        assert 'which does not exist' in message
        assert f'configs/{missing}/README.md' in message


def test_missing_annotation_file_and_image_folder(
    tmp_path, detector_config, detector_run, mini_coco
):
    root = shutil.copytree(mini_coco, tmp_path / 'mini_coco')
    options = [f'test_dataloader.dataset.data_root={root}']
    args = ('test', detector_config, detector_run / 'iter_2.pth')
    (root / 'annotations' / 'instances_val.json').rename(tmp_path / 'moved.json')
    assert f'{root}/annotations/instances_val.json, which does not' in error_of(
        *args, options=options
    )
    (tmp_path / 'moved.json').rename(root / 'annotations' / 'instances_val.json')
    shutil.rmtree(root / 'val')
    assert f'{root}/val/, which does not exist' in error_of(*args, options=options)


def test_missing_annotation_file_of_the_metric(tmp_path, detector_config, detector_run):
    message = error_of(
        'test', detector_config, detector_run / 'iter_2.pth',
        options=[f'test_evaluator.ann_file={tmp_path}/none.json'],
    )  # fmt: skip
    assert f'{tmp_path}/none.json, which does not exist' in message


@pytest.fixture
def edited_coco(tmp_path, mini_coco):
    """Changes the training annotations; returns the option that points the config at them."""

    def edit(change):
        root = shutil.copytree(mini_coco, tmp_path / 'mini_coco')
        path = root / 'annotations' / 'instances_train.json'
        content = json.loads(path.read_text())
        path.write_text(change(content) or json.dumps(content))
        return [f'train_dataloader.dataset.data_root={root}']

    return edit


def test_objects_of_an_unknown_category(detector_config, edited_coco):
    def change(content):
        content['annotations'][0]['category_id'] = 77
        content['annotations'][1]['category_id'] = 99

    message = error_of('train', detector_config, options=edited_coco(change))
    assert 'instances_train.json has objects of unknown category: category_id 77, 99' in message
    assert 'define 1, 2, 3, 4, 5, 6' in message


def test_class_that_the_annotations_do_not_define(detector_config, edited_coco):
    def change(content):
        content['categories'][3]['name'] = 'asterisk'

    message = error_of('train', detector_config, options=edited_coco(change))
    assert 'does not define the categories star of the config' in message
    assert 'it defines asterisk, circle' in message


def test_annotations_that_are_not_json(detector_config, edited_coco):
    message = error_of('train', detector_config, options=edited_coco(lambda c: json.dumps(c)[:-20]))
    assert 'instances_train.json is not valid JSON' in message


def test_annotations_that_are_not_coco(detector_config, edited_coco):
    message = error_of('train', detector_config, options=edited_coco(lambda c: '[]'))
    assert 'is not in COCO format' in message


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


# --- checkpoints ------------------------------------------------------------------------------


@pytest.fixture
def weights(segmentor_run):
    return torch.load(segmentor_run / 'iter_2.pth', weights_only=False)['state_dict']


def test_missing_checkpoint(segmentor_config):
    assert 'none.pth does not exist' in error_of('test', segmentor_config, 'none.pth')


def test_truncated_checkpoint(tmp_path, segmentor_config, segmentor_run):
    content = (segmentor_run / 'iter_2.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(content[: len(content) // 2])
    message = error_of('test', segmentor_config, tmp_path / 'cut.pth', '--work-dir', tmp_path)
    assert 'cut.pth is truncated or not a PyTorch checkpoint' in message


def test_checkpoint_of_another_variant(tmp_path, segmentor_config, segmentor_run, weights):
    message = error_of(
        'test', segmentor_config, segmentor_run / 'iter_2.pth', '--work-dir', tmp_path, options=[
            'model.backbone.channels=32', 'model.backbone.depths=[1,1,1,1]',
            'model.decode_head.in_channels=[32,64,128,256]', 'model.auxiliary_head.in_channels=128',
        ],
    )  # fmt: skip
    assert 'iter_2.pth does not fit EncoderDecoder' in message
    unknown = [k for k in weights if k.startswith('backbone.levels.2.blocks.1.')]
    assert f'{len(unknown)} weights of the file are unknown to the model: {unknown[0]}' in message
    assert 'backbone.patch_embed.conv1.weight (file (8, 3, 3, 3), model (16, 3, 3, 3))' in message
    assert '16 channels, depths 1-1-2-1; the model 32 channels, depths 1-1-1-1' in message


def test_checkpoint_with_another_head(tmp_path, segmentor_config, segmentor_run):
    message = error_of(
        'test', segmentor_config, segmentor_run / 'iter_2.pth', '--work-dir', tmp_path,
        options=['model.decode_head.num_classes=11'],
    )  # fmt: skip
    assert '2 weights have another shape: decode_head.conv_seg' in message
    assert 'The backbone fits, the heads do not' in message


def test_checkpoint_without_a_backbone(tmp_path, segmentor_config, weights):
    heads = {k: v for k, v in weights.items() if not k.startswith('backbone.')}
    torch.save({'state_dict': heads}, tmp_path / 'heads.pth')
    for args in (
        ('test', segmentor_config, tmp_path / 'heads.pth'),
        ('train', segmentor_config),
    ):
        message = error_of(
            *args, '--work-dir', tmp_path, options=[f'load_from={tmp_path}/heads.pth']
        )
        assert 'heads.pth has no weights for EncoderDecoder' in message
        assert 'it has auxiliary_head, decode_head' in message


def test_imagenet_checkpoint_in_place_of_a_segmentor(tmp_path, segmentor_config, weights):
    backbone = {k.removeprefix('backbone.'): v for k, v in weights.items() if 'backbone' in k}
    torch.save({'model': backbone}, tmp_path / 'imagenet.pth')
    message = error_of('test', segmentor_config, tmp_path / 'imagenet.pth', '--work-dir', tmp_path)
    assert "init_cfg=dict(type='Pretrained'" in message


def test_fine_tuning_needs_the_whole_backbone(tmp_path, segmentor_config, weights):
    del weights['backbone.levels.3.norm.0.bias']
    torch.save({'state_dict': weights}, tmp_path / 'w.pth')
    message = error_of(
        'train', segmentor_config, '--work-dir', tmp_path, options=[f'load_from={tmp_path}/w.pth']
    )
    assert 'missing in the file: backbone.levels.3.norm.0.bias' in message


def test_pretrained_backbone_of_another_variant(tmp_path, segmentor_config, weights):
    torch.save({'state_dict': weights}, tmp_path / 'w.pth')
    message = error_of(
        'train', segmentor_config, '--work-dir', tmp_path, options=[
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint={tmp_path}/w.pth',
            'model.backbone.depths=[1,1,3,1]',
        ],
    )  # fmt: skip
    assert 'depths 1-1-2-1; the model 16 channels, depths 1-1-3-1' in message


def test_resuming_needs_a_training_state(tmp_path, segmentor_config, weights):
    torch.save({'state_dict': weights, 'meta': {}}, tmp_path / 'official.pth')
    message = error_of(
        'train', segmentor_config, '--work-dir', tmp_path, '--resume', tmp_path / 'official.pth'
    )
    assert 'cannot be resumed from: it has no training state, only state_dict, meta' in message


# --- images -----------------------------------------------------------------------------------


def test_missing_image(tmp_path, segmentor_config, segmentor_run):
    checkpoint = segmentor_run / 'iter_2.pth'
    message = error_of(
        'image_demo', 'none.jpg', segmentor_config, checkpoint, '--out', tmp_path / 'o.png'
    )
    assert 'image none.jpg does not exist' in message


@pytest.mark.parametrize('content', [b'', b'not an image', b'\xff\xd8\xff\xe0'])
def test_image_that_is_not_an_image(tmp_path, segmentor_config, segmentor_run, content):
    image = tmp_path / 'fake.jpg'
    image.write_bytes(content)
    message = error_of(
        'image_demo', image, segmentor_config, segmentor_run / 'iter_2.pth', '--out',
        tmp_path / 'o.png',
    )  # fmt: skip
    assert 'fake.jpg is not an image' in message
    assert not (tmp_path / 'o.png').exists()


@pytest.mark.parametrize('out', ['picture', 'picture.xyz'])
def test_picture_name_without_a_format(segmentor_config, mini_coco, out):
    image = next((mini_coco / 'val').glob('*.jpg'))
    message = error_of('image_demo', image, segmentor_config, 'x.pth', '--out', out)
    assert f'--out {out} is not the name of an image file' in message


def test_demo_with_a_checkpoint_of_another_variant(
    tmp_path, segmentor_config, segmentor_run, mini_coco
):
    message = error_of(
        'image_demo', next((mini_coco / 'val').glob('*.jpg')), segmentor_config,
        segmentor_run / 'iter_2.pth', '--out', tmp_path / 'o.png',
        options=['model.backbone.depths=[1,1,3,1]'],
    )  # fmt: skip
    assert 'depths 1-1-2-1; the model 16 channels, depths 1-1-3-1' in message
