"""Multi-scale flip testing: the settings of every config, and the model that averages."""

import pytest
import torch
import yaml
from golden_detseg import ROOT
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

FOLDERS = ('ade20k', 'cityscapes', 'coco-stuff', 'mapillary', 'nyu', 'pascal-context')
NAMES = [
    f'{f}/{path.stem}' for f in FOLDERS for path in sorted((ROOT / 'configs' / f).glob('*.py'))
]
ZOO = yaml.safe_load((ROOT / 'tests' / 'golden' / 'model_zoo.yaml').read_text())['segmentation']
OFFICIAL = {
    f'{folder}/{model["Name"]}': model['Converted From']['Code']
    for folder in FOLDERS
    for model in yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())['Models']
}


def test_there_are_28_configs():
    assert len(NAMES) == len(set(OFFICIAL.values())) == 28
    assert set(NAMES) == set(OFFICIAL)


@pytest.mark.parametrize('name', NAMES)
def test_official_scales_and_flips(name):
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    *_, tree, path = OFFICIAL[name].split('/')
    official = ZOO[tree][path.removesuffix('.py')]['test_pipeline']
    if own := official.get('img_ratios'):  # Mask2Former's own multi-scale config for ADE20K
        ratios = [short / 896 for short in (768, 832, 896, 960, 1024)]
        assert [round(r, 6) for r in ratios] == own
        assert cfg.test_with_tta
    else:  # what the official --aug-test sets
        ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
        assert 'test_with_tta' not in cfg
    width, height = official['test_scale']
    load, augment = cfg.tta_pipeline
    assert load == {'type': 'LoadImageFromFile'} and augment.type == 'TestTimeAug'
    resizes, *rest = augment.transforms
    assert resizes == [
        {'type': 'Resize', 'scale': (int(width * r), int(height * r)), 'keep_ratio': True}
        for r in ratios
    ]
    after_resize = cfg.test_pipeline[2:-2]
    assert rest == [
        *([transform] for transform in after_resize),
        [{'type': 'RandomFlip', 'prob': 0.0}, {'type': 'RandomFlip', 'prob': 1.0}],
        [cfg.test_pipeline[-2]],
        [cfg.test_pipeline[-1]],
    ]
    assert cfg.test_pipeline[-2].type == 'LoadAnnotations'
    assert cfg.tta_model == {'type': 'MeanSoftmaxSegTTA'}


class Segmentor(BaseModel):
    """Returns its inputs as the scores."""

    def __init__(self, out_channels=3):
        super().__init__()
        self.out_channels = out_channels

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for scores, sample in zip(inputs, data_samples, strict=True):
            sample.seg_logits = PixelData(data=scores.clone())
            sample.pred_sem_seg = PixelData(data=scores.argmax(0, keepdim=True))
        return data_samples


def build(kind, module):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(dict(type=kind, module=module))


def test_mean_of_softmax_for_each_image_of_a_batch():
    torch.manual_seed(0)
    scores = 3 * torch.randn(4, 2, 3, 5, 7)  # augmentations, images, classes, H, W
    data = {
        'inputs': [list(images) for images in scores],
        'data_samples': [
            [SegDataSample(metainfo={'img_path': f'{i}.png', 'aug': a}) for i in range(2)]
            for a in range(4)
        ],
    }
    merged = build('MeanSoftmaxSegTTA', Segmentor()).test_step(data)
    expected = scores.softmax(dim=2).mean(dim=0)
    for i, sample in enumerate(merged):
        torch.testing.assert_close(sample.seg_logits.data, expected[i], rtol=0, atol=1e-6)
        assert torch.equal(sample.pred_sem_seg.data, expected[i].argmax(0, keepdim=True))
        assert (sample.img_path, sample.aug) == (f'{i}.png', 0)
    # The average is not that of the scores, nor of one augmentation.
    assert not torch.equal(merged[0].pred_sem_seg.data[0], scores.mean(0)[0].argmax(0))


def test_one_output_channel_is_refused():
    with pytest.raises(ValueError, match='at least 2 output channels, got 1'):
        build('MeanSoftmaxSegTTA', Segmentor(out_channels=1))
