"""Detectors of the official release under deterministic weights, built from our configs.

``golden/detseg`` has a part of every array that the official run recorded: of the largest feature
maps the channels that were recorded, at every third row and column, which the names say.
"""

import functools
import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from golden.deterministic_weights import tensor_for
from golden_parts import part_of
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from internimage_mm.checkpoint import convert_official

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / 'tests' / 'golden' / 'detseg'

CONFIGS = {
    'mask_rcnn_t': 'coco/mask-rcnn_internimage-t_fpn_1x_coco.py',
    'cascade_l_like': 'coco/cascade-mask-rcnn_internimage-l_fpn_1x_coco.py',
    'dino_t': 'coco/dino-4scale_internimage-t_8xb2-12e_coco.py',
    'dino_t_like_q100': 'coco/dino-4scale_internimage-t_8xb2-12e_coco.py',
    'cbdino_h_like_q100': 'coco/dino-4scale_cb-internimage-h_b1-20k_objects365-coco.py',
}
"""Our config for each golden detector."""


@functools.cache
def meta(name):
    return json.loads((GOLDEN / name / 'meta.json').read_text())


def arrays(name, file='outputs'):
    with np.load(GOLDEN / name / f'{file}.npz') as stored:
        return dict(stored)


def config(name):
    """Our config, made as small as the golden model where that is a reduced one."""
    cfg = Config.fromfile(ROOT / 'configs' / CONFIGS[name])
    backbone = dict(meta(name)['model']['backbone'])
    assert backbone.pop('type') == cfg.model.backbone.type
    assert backbone.pop('core_op') == 'DCNv3_pytorch'  # ours takes the fastest backend
    if meta(name)['reduced']:
        cfg.model.backbone.pop('arch')
        neck = meta(name)['model']['neck']
        cfg.model.neck.in_channels = (neck[0] if isinstance(neck, list) else neck)['in_channels']
        if 'bbox_head' in meta(name)['model']:
            cfg.model.num_queries = meta(name)['model']['bbox_head']['num_query']
        else:  # the golden run keeps boxes of lower scores than the official config
            golden = meta(name)['model']['test_cfg']['rcnn']
            cfg.model.test_cfg.rcnn.score_thr = golden['score_thr']
    else:
        for size in ('channels', 'depths', 'groups'):
            backbone.pop(size)  # of the preset
    cfg.model.backbone.update(backbone)
    return cfg


def official_state_dict(name):
    """The golden weights under official names."""
    overrides = meta(name)['weight_overrides']
    return {
        key: torch.from_numpy(
            np.full(shape, overrides[key], dtype)
            if key in overrides
            else tensor_for(key, shape, dtype)
        )
        for key, shape, dtype in meta(name)['keys']
    }


def build(cfg):
    """The detector of a config."""
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return revert_sync_batchnorm(MODELS.build(cfg.model))


def detector(name):
    """The detector of our config with the converted golden weights, in evaluation mode."""
    model = build(config(name))
    model.load_state_dict(convert_official(official_state_dict(name)))
    return model.eval()


def golden_pipeline(name):
    """Our test pipeline, at the scale of the golden run."""
    pipeline = config(name).test_dataloader.dataset.pipeline
    for step in pipeline:
        if step['type'] == 'Resize':
            assert sorted(step['scale']) == sorted(meta(name)['official_img_scale'][0])
            step['scale'] = tuple(meta(name)['test_pipeline_used'][1]['img_scale'])
    return pipeline


def preprocess(name, model):
    """The golden image through our test pipeline: the input tensor and its data sample."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        image = ROOT / 'tests' / 'golden' / meta(name)['image']
        pack = Compose(golden_pipeline(name))(
            {'img_path': str(image), 'img_id': 0, 'instances': []}
        )
    data = {'inputs': [pack['inputs']], 'data_samples': [pack['data_samples']]}
    data = model.data_preprocessor(data, False)
    return data['inputs'], data['data_samples']


def golden_input(name):
    with np.load(ROOT / 'tests' / 'golden' / meta(name)['input_file']) as stored:
        return torch.from_numpy(stored['img'])


def training_samples(losses):
    """The ground truth of ``losses.json`` as data samples."""
    samples = []
    for info, boxes, labels in zip(
        losses['img_metas'], losses['gt_bboxes'], losses['gt_labels'], strict=True
    ):
        height, width = info['img_shape'][:2]
        sample = DetDataSample(
            metainfo={
                'img_shape': (height, width),
                'ori_shape': tuple(info['ori_shape'][:2]),
                'pad_shape': tuple(info['pad_shape'][:2]),
                'batch_input_shape': tuple(info['pad_shape'][:2]),
                'scale_factor': tuple(info['scale_factor'][:2]),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes), labels=torch.tensor(labels, dtype=torch.long)
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return samples


def assert_near(name, key, actual, tolerance, file='outputs'):
    """Compare with what is stored of an array; see :mod:`golden_parts`.

    Args:
        name: The golden detector.
        key: The array's name without the ending that says what is stored of it.
        actual: The whole array.
        tolerance: Maps a stored name to the largest absolute difference allowed.
        file: Where it is stored.
    """
    actual = actual.detach().double().numpy()
    stored = {k: v for k, v in arrays(name, file).items() if k.partition('__')[0] == key}
    assert stored
    for part, expected in stored.items():
        values = part_of(actual, part)
        assert values.shape == expected.shape
        np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance(part), err_msg=part)


class GoldenRandom:
    """The random numbers of the golden losses: functions to put in place of PyTorch's.

    Call ``k`` of any of them yields ``PCG64(1000 + k).random(shape)``; ``calls`` records them.
    """

    def __init__(self):
        self.calls = []

    def uniform(self, function, shape):
        generator = np.random.Generator(np.random.PCG64(1000 + len(self.calls)))
        self.calls.append([function, list(shape), len(self.calls)])
        return torch.from_numpy(generator.random(tuple(shape)))

    def rand_like(self, tensor, **kwargs):
        return self.uniform('rand_like', tensor.shape).to(tensor.dtype)

    def randint_like(self, tensor, low=0, high=None, dtype=None, **kwargs):
        u = self.uniform(f'randint_like[{low},{high})', tensor.shape)
        return (low + (high - low) * u).floor().to(dtype or tensor.dtype)

    def randperm(self, n, **kwargs):
        return torch.argsort(self.uniform('randperm', [n]), stable=True)

    def patch(self, monkeypatch):
        for name in ('rand_like', 'randint_like', 'randperm'):
            monkeypatch.setattr(torch, name, getattr(self, name))


_run_numbers = itertools.count()


def load_tool(name):
    """A file of ``tools`` as a module."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name, *args, options=()):
    """Call the ``main`` of a tool as from a shell; returns what it returns."""
    # mmengine keeps visualizers and logs by name for the life of the process.
    names = [f'{key}=det{next(_run_numbers)}' for key in ('visualizer.name', 'experiment_name')]
    return load_tool(name).main([*map(str, args), '--cfg-options', *names, *map(str, options)])
