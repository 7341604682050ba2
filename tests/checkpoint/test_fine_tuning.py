"""load_from of the official configs: files of other models, fitted to the full-size ones."""

from pathlib import Path

import pytest
import torch
from checkpoint.helpers import empty, official_shapes
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from internimage_mm.checkpoint import CheckpointError, fit_state_dict

ROOT = Path(__file__).parents[2]


def official(name, **changes):
    return {'state_dict': empty({**official_shapes(name), **changes})}


def build(config):
    cfg = Config.fromfile(ROOT / 'configs' / config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return MODELS.build(cfg.model)


def test_dino_of_objects365_on_coco(logged):
    """365 classes to 80: the classifiers and the labels of the denoising queries start anew."""
    classes = {f'bbox_head.cls_branches.{i}.weight': [365, 256] for i in range(7)}
    classes |= {f'bbox_head.cls_branches.{i}.bias': [365] for i in range(7)}
    classes |= {'bbox_head.label_embedding.weight': [365, 256]}
    checkpoint = official(
        'detection__coco__dino_4scale_internimage_h_objects365_coco_ss', **classes
    )
    model = build('coco/dino-4scale_internimage-h_b1-20k_objects365-coco.py')
    fitting = fit_state_dict(checkpoint, model, 'o365.pth', heads_may_differ=True)
    anew = {k.replace('bbox_head.label', 'dn_query_generator.label') for k in classes}
    assert model.state_dict().keys() - fitting.keys() == anew
    (warning,) = logged
    assert 'o365.pth: the backbone fits; of the rest, 0 weights are not in the file' in warning
    assert f'{len(classes)} have another shape' in warning
    assert all(name in warning for name in anew)
    # For a test it is an error.
    with pytest.raises(CheckpointError, match=rf'{len(classes)} weights have another shape'):
        fit_state_dict(checkpoint, model, 'o365.pth')


def test_segformer_of_mapillary_for_upernet_on_cityscapes(logged):
    """The official UPerNet fine-tuning starts from the checkpoint of the other head."""
    checkpoint = official('segmentation__mapillary__segformer_internimage_l_512x1024_80k_mapillary')
    model = build('cityscapes/upernet_internimage-l_8xb2-160k_mapillary2cityscapes-512x1024.py')
    fitting = fit_state_dict(checkpoint, model, 'segformer.pth', heads_may_differ=True)
    # The bias of the classifiers is the one thing with the same name and shape.
    assert {k for k in fitting if not k.startswith('backbone.')} == {'decode_head.conv_seg.bias'}
    assert {k for k in model.state_dict() if k.startswith('backbone.')} <= fitting.keys()
    assert 'Unused from the file: decode_head.convs.0.conv.weight' in logged[0]


def test_mask2former_of_coco_stuff_on_ade20k(logged):
    checkpoint = official(
        'segmentation__coco_stuff164k__mask2former_internimage_h_896_80k_cocostuff164k'
    )
    model = build('ade20k/mask2former_internimage-h_16xb1-80k_cocostuff2ade20k-896x896.py')
    fitting = fit_state_dict(checkpoint, model, 'm2f.pth', heads_may_differ=True)
    anew = model.state_dict().keys() - fitting.keys()
    assert anew == {'decode_head.cls_embed.weight', 'decode_head.cls_embed.bias'}
    assert all(name in logged[0] for name in anew)
