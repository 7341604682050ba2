"""From the classifier of ImageNet-22k to that of ImageNet-1k."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import internimage_mm.cls  # noqa: F401  registers
from internimage_mm.checkpoint import CheckpointError, convert_official, fit_state_dict
from internimage_mm.checkpoint.convert import convert_to_official
from internimage_mm.checkpoint.imagenet_22k import INDICES_1K_IN_22K, NUM_CLASSES_22K


def classifier(num_classes):
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(
            type='InternImage', channels=8, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8],
            out_indices=(3,),
        ),
        neck=dict(type='ConvPoolingNeck', in_channels=64, out_channels=96),
        head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=96),
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg).eval()


@pytest.fixture(scope='module')
def model_22k():
    torch.manual_seed(0)
    return classifier(NUM_CLASSES_22K)


def official_file(model):
    weights = convert_to_official(model.state_dict())
    assert {'conv_head.0.weight', 'head.weight', 'patch_embed.conv1.weight'} <= weights.keys()
    return {'model': weights}


def test_the_map():
    assert len(INDICES_1K_IN_22K) == 1000
    assert min(INDICES_1K_IN_22K) >= 0 and max(INDICES_1K_IN_22K) < NUM_CLASSES_22K
    assert INDICES_1K_IN_22K[:3] == (359, 368, 460)
    # The two that share a class in the official file.
    assert len(set(INDICES_1K_IN_22K)) == 999
    assert INDICES_1K_IN_22K[849] == INDICES_1K_IN_22K[850]


@pytest.mark.parametrize('fine_tuning', [False, True])
def test_rows_of_the_1000_classes_are_taken(model_22k, fine_tuning):
    model = classifier(1000)
    weights = fit_state_dict(official_file(model_22k), model, '22k.pth', fine_tuning)
    model.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model_22k(images)[:, list(INDICES_1K_IN_22K)]
        assert torch.equal(model(images), expected)


def test_other_numbers_of_classes_are_not_touched(model_22k):
    with pytest.raises(CheckpointError, match='another shape'):
        fit_state_dict(official_file(model_22k), classifier(999), '22k.pth')
    weights = fit_state_dict(official_file(model_22k), classifier(999), '22k.pth', True)
    assert 'head.fc.weight' not in weights and 'neck.conv_head.0.weight' in weights
    same = fit_state_dict(official_file(model_22k), classifier(NUM_CLASSES_22K), '22k.pth')
    assert torch.equal(same['head.fc.weight'], model_22k.head.fc.weight)


def test_official_names_of_the_metadata_branch_round_trip():
    ours = {
        'backbone.patch_embed.conv1.weight': torch.zeros(4, 3, 3, 3),
        'neck.fc_norm.0.weight': torch.zeros(8),
        'head.fc.weight': torch.zeros(5, 8),
        'head.meta_head_1.0.weight': torch.zeros(64, 4),
        'head.meta_head_2.3.w1.weight': torch.zeros(64, 64),
        'head.meta_norm.bias': torch.zeros(128),
        'head.meta_head.weight': torch.zeros(5, 128),
    }
    official = convert_to_official(ours)
    assert set(official) == {
        'patch_embed.conv1.weight', 'fc_norm.0.weight', 'head.weight', 'meta_head_1.0.weight',
        'meta_head_2.3.w1.weight', 'meta_norm.bias', 'meta_head.weight',
    }  # fmt: skip
    assert convert_official(official).keys() == ours.keys()
