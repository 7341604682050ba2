"""Official checkpoints in the libraries' own inference functions and in mmengine's own runner."""

import pytest
import torch
from golden.deterministic_weights import tensor_for
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from internimage_mm.checkpoint import CheckpointError, convert_to_official, loading


@pytest.fixture(scope='module')
def official_files(tmp_path_factory, detector_config, segmentor_config):
    """Official files for the tiny detector and segmentor: other weights than those of new ones."""
    folder = tmp_path_factory.mktemp('official')
    files = {}
    for name, path in {'detector': detector_config, 'segmentor': segmentor_config}.items():
        cfg = Config.fromfile(path)
        init_default_scope(cfg.default_scope)
        official = convert_to_official(MODELS.build(cfg.model).state_dict())
        weights = {k: official_tensor(k, v) for k, v in official.items()}
        classes = cfg.metainfo.classes
        palette = cfg.metainfo.get('palette')
        files[name] = folder / f'{name}.pth'
        torch.save(
            {'meta': {'CLASSES': classes, 'PALETTE': palette}, 'state_dict': weights}, files[name]
        )
    return files


def official_tensor(name, like):
    return torch.from_numpy(tensor_for(name, list(like.shape), str(like.dtype).split('.')[-1]))


def assert_loaded(model, file):
    state = model.state_dict()
    weights = torch.load(file, weights_only=True)['state_dict']
    assert state.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(state[name], value), name


@pytest.fixture
def image(mini_coco):
    return str(next((mini_coco / 'val').glob('*.jpg')))


def test_mmdet(detector_config, official_files, image):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    file = str(official_files['detector'])
    model = init_detector(str(detector_config), file, device='cpu')
    assert_loaded(model, file)
    assert model.dataset_meta['classes'] == Config.fromfile(detector_config).metainfo.classes
    expected = inference_detector(model, image).pred_instances
    inferencer = DetInferencer(str(detector_config), file, device='cpu')
    assert_loaded(inferencer.model, file)
    (result,) = inferencer(image, no_save_vis=True)['predictions']
    assert result['scores'] == pytest.approx(expected.scores.tolist())
    assert len(result['scores']) == 5


def test_mmseg(segmentor_config, official_files, image):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    file = str(official_files['segmentor'])
    model = init_model(str(segmentor_config), file, device='cpu')
    assert_loaded(model, file)
    expected = inference_model(model, image).pred_sem_seg.data[0]
    inferencer = MMSegInferencer(str(segmentor_config), file, device='cpu', dataset_name='ade20k')
    assert_loaded(inferencer.model, file)
    labels = inferencer(image)['predictions']
    assert torch.equal(torch.from_numpy(labels), expected)


def test_another_number_of_classes_is_an_error(segmentor_config, official_files):
    """The stock functions alone log a line and predict with a random classifier."""
    from mmseg.apis import MMSegInferencer, init_model

    options = {'model.decode_head.num_classes': 19, 'model.auxiliary_head.num_classes': 19}
    cfg = Config.fromfile(segmentor_config)
    cfg.merge_from_dict(options)
    file = str(official_files['segmentor'])
    for build in (
        lambda: init_model(cfg, file, device='cpu'),
        lambda: MMSegInferencer(cfg, file, device='cpu'),
    ):
        with pytest.raises(CheckpointError, match=r'segmentor\.pth does not fit EncoderDecoder'):
            build()


def stock_runner(config, work_dir, **changes):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({'work_dir': str(work_dir), 'experiment_name': work_dir.name, **changes})
    return Runner.from_cfg(cfg)


def test_stock_runner_tests_strictly(tmp_path, segmentor_config, official_files):
    file = str(official_files['segmentor'])
    runner = stock_runner(segmentor_config, tmp_path / 'fits', load_from=file)
    runner.load_or_resume()
    assert_loaded(runner.model, file)
    runner = stock_runner(
        segmentor_config, tmp_path / 'other', load_from=file,
        **{'model.decode_head.num_classes': 11},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match='2 weights have another shape'):
        runner.test()


def test_stock_runner_fine_tunes(tmp_path, segmentor_config, official_files, monkeypatch):
    warnings = []
    monkeypatch.setattr(loading, 'print_log', lambda message, **kwargs: warnings.append(message))
    file = official_files['segmentor']
    runner = stock_runner(
        segmentor_config, tmp_path / 'tuned', load_from=str(file),
        **{'model.decode_head.num_classes': 11, 'train_cfg.max_iters': 1, 'custom_hooks': []},
    )  # fmt: skip
    monkeypatch.setattr('mmengine.runner.IterBasedTrainLoop.run', lambda loop: loop.runner.model)
    runner.train()
    state = runner.model.state_dict()
    weights = torch.load(file, weights_only=True)['state_dict']
    assert {k for k, v in weights.items() if not torch.equal(v, state[k])} == {
        'decode_head.conv_seg.weight',
        'decode_head.conv_seg.bias',
    }
    assert any('decode_head.conv_seg.weight' in message for message in warnings)
