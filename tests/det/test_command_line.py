"""Official checkpoint files given to the command-line tools."""

import json
import pickle

import cv2
import numpy as np
import pytest
from det import helpers
from golden_detseg import arrays, image_file, save_official_checkpoint
from mmdet.datasets import CocoDataset
from tool_runner import run_tool


@pytest.fixture(scope='module', params=['cbdino_h_like_q100', 'mask_rcnn_t'])
def case(request, tmp_path_factory):
    """A golden detector: a config on a data set of the golden image, and the official file."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    save_official_checkpoint(name, folder / 'official.pth')
    image = image_file(name)
    (folder / 'image.png').write_bytes(image.read_bytes())
    height, width = cv2.imread(str(image)).shape[:2]
    classes = CocoDataset.METAINFO['classes']
    box = dict(id=1, image_id=1, category_id=1, bbox=[10, 20, 100, 80], area=8000, iscrowd=0)
    annotations = {
        'images': [dict(id=1, file_name='image.png', height=height, width=width)],
        'categories': [dict(id=i, name=c) for i, c in enumerate(classes, 1)],
        'annotations': [{**box, 'segmentation': [[10, 20, 110, 20, 110, 100, 10, 100]]}],
    }
    (folder / 'annotations.json').write_text(json.dumps(annotations))
    cfg = helpers.config(name)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=str(folder), ann_file='annotations.json', data_prefix=dict(img='')
        )
        loader.dataset.pipeline = helpers.golden_pipeline(name)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(folder / 'annotations.json')
    cfg.dump(folder / 'config.py')
    return name, folder


def test_test_gives_the_official_detections(case):
    name, folder = case
    metrics = run_tool(
        'test', folder / 'config.py', folder / 'official.pth', '--work-dir', folder / 'work',
        '--out', folder / 'out.pkl',
    )  # fmt: skip
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    found = pickle.loads((folder / 'out.pkl').read_bytes())[0]['pred_instances']
    order = found['scores'].argsort(descending=True, stable=True)
    stored = arrays(name)
    np.testing.assert_array_equal(found['labels'][order].numpy(), stored['final_label'])
    # As in test_golden_inference, the larger of the two models.
    np.testing.assert_allclose(
        found['bboxes'][order].numpy(), stored['final_box_xyxy'], rtol=0, atol=4.6e-3
    )
    np.testing.assert_allclose(
        found['scores'][order].numpy(), stored['final_score'], rtol=0, atol=7e-6
    )


def test_image_demo(case):
    _, folder = case
    run_tool(
        'image_demo', folder / 'image.png', folder / 'config.py', folder / 'official.pth',
        '--out', folder / 'drawn.png', '--score-thr', 0,
    )  # fmt: skip
    drawn, image = cv2.imread(str(folder / 'drawn.png')), cv2.imread(str(folder / 'image.png'))
    assert drawn.shape == image.shape
    assert (drawn != image).mean() > 0.1
