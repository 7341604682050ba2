"""The pipelines of every detector and segmentor process an image, with their preprocessor."""

import copy

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS
from release import ours, zoo
from release.data_terms import train_leaves
from release.normal import leaf_datasets

DETSEG = zoo.DETECTION + zoo.SEGMENTATION
HEIGHT, WIDTH = 120, 170
CLASSES = {
    'ADE20KDataset': 150,
    'COCOStuffDataset': 171,
    'CityscapesDataset': 19,
    'CocoDataset': 80,
    'LVISV1Dataset': 1203,
    'MapillaryCityscapesDataset': 19,
    'NYUDepthV2Dataset': 40,
    'PascalContextDataset59': 59,
    'VOCDataset': 20,
}


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """What a data set says of one image with one object and one label map."""
    folder = tmp_path_factory.mktemp('image')
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'image.png'), image)
    cv2.imwrite(str(folder / 'labels.png'), np.full((HEIGHT, WIDTH), 3, np.uint8))
    return {
        'img_path': str(folder / 'image.png'),
        'img_id': 1,
        'height': HEIGHT,
        'width': WIDTH,
        'instances': [
            {
                'bbox': [10, 20, 150, 110],
                'bbox_label': 2,
                'ignore_flag': 0,
                'mask': [[10, 20, 150, 20, 150, 110, 10, 110]],
            }
        ],
        'image_level_labels': None,
        'seg_map_path': str(folder / 'labels.png'),
        'label_map': None,
        'seg_fields': [],
    }


@pytest.mark.parametrize('official', DETSEG)
def test_pipelines_run(official, sample):
    cfg = ours.load(official)
    seg = cfg.default_scope == 'mmseg'
    torch.manual_seed(0)
    np.random.seed(0)
    with ours.default_scope(cfg):
        preprocess = MODELS.build(copy.deepcopy(cfg.model.data_preprocessor))
        for loader, training in ((cfg.train_dataloader, True), (cfg.test_dataloader, False)):
            (leaf, *_) = leaf_datasets(loader.dataset)
            info = copy.deepcopy(sample)
            info['reduce_zero_label'] = leaf.get('reduce_zero_label', False)
            pack = Compose(leaf['pipeline'])(info)
            if not training:
                check_test_sample(cfg, pack, info['reduce_zero_label'])
            batch = {'inputs': [pack['inputs']], 'data_samples': [pack['data_samples']]}
            inputs = preprocess(batch, training)['inputs']
            inputs = inputs if torch.is_tensor(inputs) else inputs[0]
            if seg and training:
                assert tuple(inputs.shape[-2:]) == cfg.model.data_preprocessor.size
            elif not seg:
                assert inputs.shape[-1] % 32 == inputs.shape[-2] % 32 == 0
            else:
                assert inputs.shape[-2:] == pack['inputs'].shape[-2:]


def check_test_sample(cfg, pack, reduce_zero_label):
    """By hand: keep the ratio, one edge as given, then (segmentation) perhaps ceil to 32."""
    pipeline = leaf_datasets(cfg.test_dataloader.dataset)[0]['pipeline']
    long, short = sorted(pipeline[1]['scale'], reverse=True)
    factor = min(long / WIDTH, short / HEIGHT)
    size = int(HEIGHT * factor + 0.5), int(WIDTH * factor + 0.5)
    if any(step['type'] == 'ResizeToMultiple' for step in pipeline):
        size = tuple(-(-side // 32) * 32 for side in size)
    assert tuple(pack['inputs'].shape[1:]) == size
    if cfg.default_scope == 'mmseg':
        labels = pack['data_samples'].gt_sem_seg.data
        assert labels.shape == (1, HEIGHT, WIDTH)
        assert labels.unique().tolist() == [2 if reduce_zero_label else 3]


@pytest.mark.parametrize('official', DETSEG)
def test_data_sets_know_their_classes(official):
    cfg = ours.load(official)
    with (
        ours.default_scope(cfg),
        DATASETS.switch_scope_and_registry(cfg.default_scope) as registry,
    ):
        for leaf in [*train_leaves(cfg), *leaf_datasets(cfg.test_dataloader.dataset)]:
            if leaf['type'] == 'OpenImagesDataset':
                continue  # reads the 601 names from a file
            metainfo = {**registry.get(leaf['type']).METAINFO, **leaf.get('metainfo', {})}
            expected = 1 if 'metainfo' in leaf else CLASSES[leaf['type']]
            assert len(metainfo['classes']) == expected
