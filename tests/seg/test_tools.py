"""A checkpoint in the official layout, given to the command-line tools."""

import pickle
import shutil

import cv2
import numpy as np
import pytest
from golden_detseg import GOLDEN, arrays, save_official_checkpoint
from mmengine.registry import DATASETS, DefaultScope
from tool_runner import run_tool

from .helpers import reduced_config

IMAGE = GOLDEN / 'test_image_240x320.png'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Of a case: its config, on a data set of the one image, and its checkpoint."""
    folder = tmp_path_factory.mktemp('official')
    made = {}

    def make(case):
        if case not in made:
            cfg = reduced_config(case)
            dataset = cfg.test_dataloader.dataset
            dataset.data_root = str(folder / case)
            dataset.data_prefix = {'img_path': 'images', 'seg_map_path': 'labels'}
            dataset.img_suffix, dataset.seg_map_suffix = '.png', '.png'
            cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
            for part in ('images', 'labels'):
                (folder / case / part).mkdir(parents=True)
            shutil.copy(IMAGE, folder / case / 'images' / 'image.png')
            cfg.dump(folder / f'{case}.py')
            checkpoint = save_official_checkpoint(case, folder / f'{case}.pth')
            made[case] = folder / f'{case}.py', checkpoint, folder / case / 'labels' / 'image.png'
        return made[case]

    return make


@pytest.mark.parametrize(
    ('case', 'mode'),
    [
        ('upernet_t', 'argmax_ms_flip'),
        ('segformer_l_like', 'argmax'),
        ('mask2former_h_like', 'argmax'),
        ('mask2former_h_like', 'argmax_slide_crop128_stride96'),
    ],
)
def test_test(case, mode, files, tmp_path):
    config, checkpoint, label_file = files(case)
    expected = arrays(case)[mode]
    # The recorded prediction is the ground truth, as the data set stores it; a corner is ignored.
    ade20k = 'ade20k' in reduced_config(case).filename
    labels = expected + 1 if ade20k else np.where(expected < 19, expected, 255)
    labels[:8, :8] = 0 if ade20k else 255
    cv2.imwrite(str(label_file), labels)
    arguments = ['--work-dir', tmp_path, '--out', tmp_path / 'out.pkl']
    options = []
    if mode == 'argmax_ms_flip':
        arguments.append('--tta')
    elif 'slide' in mode:
        options = [
            'model.test_cfg.mode=slide',
            'model.test_cfg.crop_size=(128,128)',
            'model.test_cfg.stride=(96,96)',
        ]
    metrics = run_tool('test', config, checkpoint, *arguments, options=options)
    if ade20k:  # hardly any of the Cityscapes model's recorded labels is one of the 19 classes
        assert metrics['aAcc'] == metrics['mIoU'] == 100
    with open(tmp_path / 'out.pkl', 'rb') as file:
        (prediction,) = pickle.load(file)
    assert 'seg_logits' not in prediction
    np.testing.assert_array_equal(prediction['pred_sem_seg']['data'][0], expected)


def test_config_of_a_multi_scale_test_needs_no_option(files, tmp_path):
    case = 'mask2former_h_like'
    config, checkpoint, label_file = files(case)
    expected = arrays(case)['argmax_ms_flip']
    cv2.imwrite(str(label_file), expected + 1)
    multi_scale = tmp_path / 'ms.py'
    multi_scale.write_text(f"_base_ = '{config}'\ntest_with_tta = True\n")
    metrics = run_tool('test', multi_scale, checkpoint, '--work-dir', tmp_path)
    assert metrics['aAcc'] == 100


def test_image_demo(files, tmp_path):
    case = 'segformer_l_like'
    config, checkpoint, _ = files(case)
    out = tmp_path / 'out.png'
    run_tool(
        'image_demo', IMAGE, config, checkpoint, '--out', out, '--device', 'cpu',
        options=['visualizer.alpha=0.5'],
    )  # fmt: skip
    image, drawn = cv2.imread(str(IMAGE)).astype(float), cv2.imread(str(out)).astype(float)
    assert drawn.shape == image.shape
    # Half image, half the colour of the class; names are written over some of it, and the 150
    # outputs of a Cityscapes head have 19 colours.
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(
            {**reduced_config(case).test_dataloader.dataset, 'lazy_init': True}
        )
    palette = np.array(dataset.metainfo['palette'])[:, ::-1]
    labels = arrays(case)['argmax']
    has_colour = labels < len(palette)
    assert has_colour.sum() > 100
    expected = np.round(0.5 * image + 0.5 * palette[np.where(has_colour, labels, 0)])
    assert np.median(np.abs(drawn - expected)[has_colour]) <= 2
