"""Detectors of the official release under deterministic weights, built from our configs."""

import torch
from golden_detseg import ROOT, image_file, meta, official_state_dict
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from internimage_mm.checkpoint import convert_official

CONFIGS = {
    'mask_rcnn_t': 'coco/mask-rcnn_internimage-t_fpn_1x_coco.py',
    'cascade_l_like': 'coco/cascade-mask-rcnn_internimage-l_fpn_1x_coco.py',
    'dino_t': 'coco/dino-4scale_internimage-t_8xb2-12e_coco.py',
    'dino_t_like_q100': 'coco/dino-4scale_internimage-t_8xb2-12e_coco.py',
    'cbdino_h_like_q100': 'coco/dino-4scale_cb-internimage-h_b1-20k_objects365-coco.py',
}
"""Our config for each golden detector."""


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
        pack = Compose(golden_pipeline(name))(
            {'img_path': str(image_file(name)), 'img_id': 0, 'instances': []}
        )
    data = {'inputs': [pack['inputs']], 'data_samples': [pack['data_samples']]}
    data = model.data_preprocessor(data, False)
    return data['inputs'], data['data_samples']


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
