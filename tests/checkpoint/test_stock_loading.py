"""Official names and misfits in mmengine's own loading functions."""

import copy
import math
import os

import pytest
import torch
from backbones.helpers import golden
from golden.deterministic_weights import tensor_for
from mmengine.model import BaseModel, BaseTTAModel, ExponentialMovingAverage
from mmengine.runner import load_checkpoint, load_state_dict
from torch import nn

from internimage_mm import InternImage
from internimage_mm.checkpoint import CheckpointError, stock_loading

CONFIG = {**golden('t_like')['config'], 'channels': 16, 'depths': [1] * 4, 'groups': [1, 1, 1, 1]}


class Classifier(BaseModel):
    """Has the names of ours for a classifier, which differ from the official ones throughout."""

    def __init__(self, num_classes=5, init_cfg=None, **options):
        super().__init__(init_cfg=init_cfg)
        self.backbone = InternImage(**{**CONFIG, **options})
        self.neck = nn.Module()
        self.neck.conv_head = nn.Sequential(nn.Conv2d(128, 8, 1, bias=False))
        self.head = nn.Module()
        self.head.fc = nn.Linear(8, num_classes)

    def forward(self, inputs, data_samples=None, mode='tensor'): ...


def official_weights(num_classes=5):
    out = {}
    for name, tensor in Classifier(num_classes).state_dict().items():
        name = name.removeprefix('backbone.').removeprefix('neck.').replace('head.fc.', 'head.')
        out[name] = torch.from_numpy(tensor_for(name, list(tensor.shape)))
    return out


@pytest.fixture
def file(tmp_path):
    torch.save({'model': official_weights(), 'epoch': 299}, tmp_path / 'official.pth')
    return str(tmp_path / 'official.pth')


def assert_loaded(model, num_classes=5):
    weights = official_weights(num_classes)
    state, name = model.state_dict(), 'levels.2.blocks.0.dcn.mask.bias'
    assert torch.equal(state['head.fc.weight'], weights['head.weight'])
    assert torch.equal(state['neck.conv_head.0.weight'], weights['conv_head.0.weight'])
    assert torch.equal(state[f'backbone.{name}'], weights[name])


def test_official_file(file):
    model = Classifier()
    checkpoint = load_checkpoint(model, file)
    assert_loaded(model)
    assert checkpoint['epoch'] == 299


def test_safetensors_of_hugging_face(tmp_path):
    from safetensors.torch import save_file

    weights = {f'model.{k}': v for k, v in official_weights().items()}
    weights = {k.replace('.gamma', '.layer_scale'): v for k, v in weights.items()}
    save_file(weights, tmp_path / 'model.safetensors')
    model = Classifier()
    load_checkpoint(model, str(tmp_path / 'model.safetensors'))
    assert_loaded(model)


def test_reading_again_keeps_the_map_location(file):
    def fails(filename, map_location):
        raise OSError

    weights = stock_loading._noting_source(fails)(file, 'meta')['model']
    assert all(tensor.is_meta for tensor in weights.values())


def test_our_file(tmp_path, file):
    first, second = Classifier(), Classifier()
    load_checkpoint(first, file)
    torch.save({'state_dict': first.state_dict(), 'meta': {}}, tmp_path / 'ours.pth')
    load_checkpoint(second, str(tmp_path / 'ours.pth'))
    assert_loaded(second)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (Classifier(6), r'official\.pth does not fit Classifier:\n  2 weights .*head\.fc\.weight'),
        (Classifier(depths=[1, 1, 2, 1]), r'missing in the file: backbone\.levels\.2\.blocks\.1'),
    ],
)
def test_misfit_is_an_error_that_names_the_file(file, model, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, file)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_model_in_our_model(tmp_path):
    """Silently random with mmengine alone: nothing of the file fits."""
    torch.save({'state_dict': nn.Linear(2, 2).state_dict()}, tmp_path / 'linear.pth')
    with pytest.raises(CheckpointError, match=r'linear\.pth has no weights for Classifier'):
        load_checkpoint(Classifier(), str(tmp_path / 'linear.pth'))


def test_fine_tuning_keeps_what_fits_and_warns(file, logged):
    model = Classifier(6)
    model.init_weights()  # what mmengine's runner does before training, and nobody else
    head = model.head.fc.weight.detach().clone()
    load_checkpoint(model, file)
    assert torch.equal(model.head.fc.weight, head)
    weights = official_weights()
    assert torch.equal(model.neck.conv_head[0].weight, weights['conv_head.0.weight'])
    assert any('head.fc.weight, head.fc.bias' in message for message in logged)


def test_fine_tuning_needs_the_backbone(tmp_path):
    weights = official_weights()
    del weights['levels.3.norm.0.bias']
    torch.save({'model': weights}, tmp_path / 'w.pth')
    model = Classifier()
    model.init_weights()
    with pytest.raises(CheckpointError, match=r'missing in the file: backbone\.levels\.3\.norm'):
        load_checkpoint(model, str(tmp_path / 'w.pth'))


def test_torch_takes_official_names_and_stays_as_strict_as_asked():
    model = Classifier()
    model.load_state_dict(official_weights())
    assert_loaded(model)
    part = {k: v for k, v in official_weights().items() if not k.startswith('levels.')}
    with pytest.raises(RuntimeError, match=r'Missing key.*backbone\.levels\.0'):
        Classifier().load_state_dict(part)
    model = Classifier()
    assert model.load_state_dict(part, strict=False).missing_keys
    assert torch.equal(model.head.fc.weight, official_weights()['head.weight'])


def test_state_dicts_without_a_file_may_lack_weights():
    """load_state_dict of mmengine, as for averages and in tests: only names are converted."""
    model = Classifier()
    load_state_dict(model, {'head.fc.bias': torch.full((5,), 3.0)})
    assert (model.head.fc.bias == 3).all()


def test_copies_and_wrappers(file):
    class TTAModel(BaseTTAModel):
        def merge_preds(self, data_samples_list): ...

    wrapped = TTAModel(module=Classifier())
    load_checkpoint(wrapped, file)
    assert_loaded(wrapped.module)
    copied = copy.deepcopy(Classifier())
    load_checkpoint(copied, file)
    assert_loaded(copied)
    averaged = ExponentialMovingAverage(Classifier())
    averaged.load_state_dict(averaged.state_dict())


def test_part_of_a_larger_model_is_left_alone(tmp_path):
    """A student and its teacher."""
    models = [nn.ModuleDict({'student': Classifier(), 'teacher': Classifier()}) for _ in range(2)]
    weights = {k: v for k, v in models[0].state_dict().items() if k.startswith('student.')}
    torch.save(weights, tmp_path / 'student.pth')
    load_checkpoint(models[1], str(tmp_path / 'student.pth'))
    name = 'student.backbone.patch_embed.conv1.weight'
    assert torch.equal(models[1].state_dict()[name], weights[name])


def test_models_without_our_backbone_are_left_alone(tmp_path):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    model = Other()
    weights = {'backbone.weight': torch.ones(2, 2), 'head.x': torch.ones(1)}
    for content in (weights, {'state_dict': weights, 'meta': {'epoch': 1}}):
        torch.save(content, tmp_path / 'other.pth')
        load_checkpoint(model, str(tmp_path / 'other.pth'))
        assert (model.backbone.weight == 1).all()
        model = Other()


def test_the_backbone_set_again_is_watched_once(file, logged):
    """As when mmdet replaces synchronised batch norms."""
    model = Classifier(6)
    model.backbone = InternImage(**CONFIG)
    model.backbone.init_weights()
    load_checkpoint(model, file)
    assert len(logged) == 1


# ---- init_cfg of the whole model ----------------------------------------------------------------


@pytest.mark.parametrize('listed', [False, True])
@pytest.mark.parametrize('prefix', [None, 'student.'])
def test_init_cfg_of_the_model(tmp_path, file, logged, prefix, listed):
    init_cfg = dict(type='Pretrained', checkpoint=file)
    weights = official_weights()
    if prefix:
        init_cfg['prefix'] = prefix
        torch.save({'state_dict': {prefix + k: v for k, v in weights.items()}}, file)
    if listed:
        init_cfg = [dict(type='Constant', layer='Conv2d', val=1), init_cfg]
    model = Classifier(init_cfg=init_cfg)
    model.init_weights()
    assert_loaded(model)
    # The head may differ, the backbone not.
    model = Classifier(6, init_cfg=init_cfg)
    model.init_weights()
    assert torch.equal(model.neck.conv_head[0].weight, weights['conv_head.0.weight'])
    assert any(f'{file}: the backbone fits' in message for message in logged)
    with pytest.raises(CheckpointError, match=r'official\.pth does not fit Classifier'):
        Classifier(depths=[1, 1, 2, 1], init_cfg=init_cfg).init_weights()


# ---- files that are no checkpoint, or no good one -----------------------------------------------


def changed(change):
    name = 'levels.0.blocks.0.mlp.fc1.weight'
    weights = official_weights()
    return {'model': {**weights, name: change(weights[name])}}


BAD_FILES = {
    'a list': ([torch.ones(1)], 'holds a list'),
    'integer names': ({'model': {0: torch.ones(1), 'a': torch.ones(1)}}, 'text, there is 0'),
    'integer names at the top': ({0: torch.ones(1)}, 'text, there is 0'),
    'sparse': (changed(lambda t: t.to_sparse()), r'mlp\.fc1\.weight is no ordinary'),
    'meta': (changed(lambda t: t.to('meta')), r'mlp\.fc1\.weight has a shape but no values'),
    'complex': (changed(lambda t: t + 1j), r'mlp\.fc1\.weight .* type torch\.complex64'),
    'integer': (changed(lambda t: t.long()), r'mlp\.fc1\.weight .* type torch\.int64'),
    'truncated': (None, 'is truncated'),
}


@pytest.mark.parametrize('bad', BAD_FILES)
@pytest.mark.parametrize('way', ['stock', 'init_cfg', 'init_cfg of the model'])
def test_bad_files_are_one_line(tmp_path, way, bad):
    content, message = BAD_FILES[bad]
    path = str(tmp_path / 'bad.pth')
    torch.save(content or official_weights(), path)
    if content is None:
        os.truncate(path, 1000)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    with pytest.raises(CheckpointError, match=rf'bad\.pth.*{message}') as error:
        if way == 'stock':
            load_checkpoint(Classifier(), path)
        elif way == 'init_cfg':
            InternImage(**CONFIG, init_cfg=init_cfg).init_weights()
        else:
            Classifier(init_cfg=init_cfg).init_weights()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_that_are_no_numbers_warn_once(tmp_path, logged, value):
    weights = official_weights()
    for name in ('head.bias', 'levels.3.norm.0.bias'):
        weights[name][-1] = value
    torch.save({'model': weights}, tmp_path / 'nan.pth')
    load_checkpoint(Classifier(), str(tmp_path / 'nan.pth'))
    (warning,) = logged
    assert f'nan.pth: 2 of {len(weights)} tensors hold NaN or infinity: ' in warning
    assert 'head.fc.bias' in warning
    assert 'backbone.levels.3.norm.0.bias' in warning
