"""Official checkpoints in the libraries' own inference functions and in mmengine's own runner."""

import pytest
import torch
from backbones.helpers import with_golden_weights
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from internimage_mm.checkpoint import CheckpointError, convert_to_official, loading

from .conftest import BASE

BACKBONE = dict(
    type='InternImage', channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], mlp_ratio=2.0,
    layer_scale=1.0, drop_path_rate=0.0,
)  # fmt: skip


def tiny_dino(detector_config):
    cfg = Config.fromfile(detector_config)
    model = Config.fromfile(BASE / 'models' / 'dino-4scale_internimage.py').model
    model.num_queries = 20
    model.backbone = dict(BACKBONE, out_indices=(1, 2, 3))
    model.neck.in_channels = [32, 64, 128]
    model.encoder.num_layers = model.decoder.num_layers = 2
    model.bbox_head.num_classes = len(cfg.metainfo.classes)
    model.test_cfg.max_per_img = 5
    cfg.model = model
    cfg.test_dataloader.dataset.pipeline[2].with_mask = False
    return cfg


def tiny_mask2former(segmentor_config):
    cfg = Config.fromfile(segmentor_config)
    model = Config.fromfile(BASE / 'models' / 'mask2former_internimage.py').model
    model.data_preprocessor = cfg.model.data_preprocessor
    model.backbone = BACKBONE
    head, num_classes = model.decode_head, len(cfg.metainfo.classes)
    head.in_channels = [16, 32, 64, 128]
    head.num_classes = num_classes
    head.loss_cls.class_weight = [1.0] * num_classes + [0.1]
    head.num_queries = 10
    head.pixel_decoder.encoder.num_layers = head.transformer_decoder.num_layers = 2
    cfg.model = model
    return cfg


def tiny_classifier():
    cfg = Config.fromfile(BASE / 'models' / 'internimage_conv-pooling.py')
    cfg.model.backbone = BACKBONE
    cfg.model.neck.update(in_channels=128, out_channels=192)
    cfg.model.head.update(in_channels=192, num_classes=7)
    pipeline = Config.fromfile(BASE / 'datasets' / 'imagenet_224.py').test_pipeline
    cfg.test_dataloader = dict(dataset=dict(type='ImageNet', pipeline=pipeline))
    cfg.merge_from_dict(Config.fromfile(BASE / 'default_runtime_cls.py').to_dict())
    return cfg


@pytest.fixture(scope='module')
def configs(tmp_path_factory, detector_config, segmentor_config):
    """Name to file: tiny models of five families."""
    folder = tmp_path_factory.mktemp('configs')
    files = {'Mask R-CNN': detector_config, 'UPerNet': segmentor_config}
    for name, cfg in {
        'DINO': tiny_dino(detector_config),
        'Mask2Former': tiny_mask2former(segmentor_config),
        'classifier': tiny_classifier(),
    }.items():
        files[name] = folder / f'{name}.py'
        cfg.dump(files[name])
    return files


@pytest.fixture(scope='module')
def official_files(tmp_path_factory, configs):
    """Official files for them: other weights than those of new models."""
    folder = tmp_path_factory.mktemp('official')
    files = {}
    for name, path in configs.items():
        cfg = Config.fromfile(path)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = with_golden_weights(MODELS.build(cfg.model))
        weights = convert_to_official(model.state_dict())
        files[name] = folder / f'{name}.pth'
        if name == 'classifier':
            content = {'model': weights, 'epoch': 299}
        else:
            classes, palette = cfg.metainfo.classes, cfg.metainfo.get('palette')
            content = {'meta': {'CLASSES': classes, 'PALETTE': palette}, 'state_dict': weights}
        torch.save(content, files[name])
    return files


def assert_loaded(model, file):
    content = torch.load(file, weights_only=True)
    weights = content.get('state_dict') or content['model']
    # tests/checkpoint holds the names to independent lists.
    official = convert_to_official(model.state_dict())
    assert official.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(official[name], value), name


@pytest.fixture
def image(mini_coco):
    return str(next((mini_coco / 'val').glob('*.jpg')))


@pytest.mark.parametrize('name', ['Mask R-CNN', 'DINO'])
def test_mmdet(configs, official_files, image, name):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    config, file = str(configs[name]), str(official_files[name])
    model = init_detector(config, file, device='cpu')
    assert_loaded(model, file)
    assert model.dataset_meta['classes'] == Config.fromfile(config).metainfo.classes
    expected = inference_detector(model, image).pred_instances
    inferencer = DetInferencer(config, file, device='cpu')
    assert_loaded(inferencer.model, file)
    (result,) = inferencer(image, no_save_vis=True)['predictions']
    assert result['scores'] == pytest.approx(expected.scores.tolist())
    assert len(result['scores']) == 5


@pytest.mark.parametrize('name', ['UPerNet', 'Mask2Former'])
def test_mmseg(configs, official_files, image, name):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    config, file = str(configs[name]), str(official_files[name])
    model = init_model(config, file, device='cpu')
    assert_loaded(model, file)
    expected = inference_model(model, image).pred_sem_seg.data[0]
    inferencer = MMSegInferencer(config, file, device='cpu', dataset_name='ade20k')
    assert_loaded(inferencer.model, file)
    labels = inferencer(image)['predictions']
    assert torch.equal(torch.from_numpy(labels), expected)


def test_mmpretrain(configs, official_files, image):
    from mmpretrain import ImageClassificationInferencer, get_model

    config, file = str(configs['classifier']), str(official_files['classifier'])
    model = get_model(config, pretrained=file, device='cpu')
    assert_loaded(model, file)
    with DefaultScope.overwrite_default_scope('mmpretrain'):  # other libraries were in use before
        inferencer = ImageClassificationInferencer(config, pretrained=file, device='cpu')
        assert_loaded(inferencer.model, file)
        (result,) = inferencer(image)
    assert result['pred_scores'].shape == (7,)
    assert result['pred_scores'].std() > 0


def test_another_number_of_classes_is_an_error(segmentor_config, official_files):
    """The stock functions alone log a line and predict with a random classifier."""
    from mmseg.apis import MMSegInferencer, init_model

    options = {'model.decode_head.num_classes': 19, 'model.auxiliary_head.num_classes': 19}
    cfg = Config.fromfile(segmentor_config)
    cfg.merge_from_dict(options)
    file = str(official_files['UPerNet'])
    for build in (
        lambda: init_model(cfg, file, device='cpu'),
        lambda: MMSegInferencer(cfg, file, device='cpu'),
    ):
        with pytest.raises(CheckpointError, match=r'UPerNet\.pth does not fit EncoderDecoder'):
            build()


def test_pretrained_of_the_segmentor_is_that_of_the_backbone(segmentor_config, official_files):
    """The old argument, which mmseg passes on."""
    cfg, file = Config.fromfile(segmentor_config), official_files['UPerNet']
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build({**cfg.model, 'pretrained': str(file)})
    model.init_weights()
    weights = torch.load(file, weights_only=True)['state_dict']
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, weights[f'backbone.{name}']), name


def stock_runner(config, work_dir, **changes):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({'work_dir': str(work_dir), 'experiment_name': work_dir.name, **changes})
    return Runner.from_cfg(cfg)


def test_stock_runner_tests_strictly(tmp_path, segmentor_config, official_files):
    file = str(official_files['UPerNet'])
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
    file = official_files['UPerNet']
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
