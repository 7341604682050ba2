"""Every kind of detector trains two iterations on mini COCO through tools/train.py."""

import json
import math

import pytest
import torch
from det import helpers
from golden_detseg import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from tool_runner import run_tool

from internimage_mm.data import MINI_COCO_CLASSES, make_mini_coco
from internimage_mm.det import InternImageDINOHead

TINY = dict(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], drop_path_rate=0.0)
BATCH = 2
"""Images per iteration; also CB-DINO's, which is for one in the official code."""

CONFIGS = {
    'mask-rcnn': 'coco/mask-rcnn_internimage-t_fpn_ms-crop-3x_coco.py',
    'cascade-mask-rcnn-ema': 'coco/cascade-mask-rcnn_internimage-xl_fpn_ms-crop-3x_coco.py',
    'cascade-rcnn': 'crowdhuman/cascade-rcnn_internimage-xl_fpn_ms-crop-3x_crowdhuman.py',
    'dino': 'coco/dino-4scale_internimage-t_8xb2-12e_coco.py',
    'dino-g': 'coco/dino-4scale_internimage-g_b1-20k_objects365-coco.py',
    'cb-dino': 'coco/dino-4scale_cb-internimage-h_b1-20k_objects365-coco.py',
}


# Parameters whose gradients are zero: the small images have no box of the two coarsest levels, nor
# (with the `allowed_border=0` of Cascade R-CNN) an anchor of them that lies within the image.
COARSE = {f'neck.fpn_convs.{i}.conv.{kind}' for i in (2, 3) for kind in ('weight', 'bias')}
IDLE = {kind: COARSE for kind in CONFIGS if kind.startswith('cascade')}


@pytest.fixture(scope='session')
def mini_coco(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'mini_coco'
    make_mini_coco(root, num_train=4, num_val=2, seed=0)
    return root


def shrink(pipeline):
    """Make the sizes of a pipeline an eighth, in place."""
    for step in pipeline:
        if isinstance(step, list):
            shrink(step)
            continue
        for key in ('scale', 'scales', 'crop_size'):
            if key in step:
                pairs = step[key] if isinstance(step[key][0], (list, tuple)) else [step[key]]
                pairs = [tuple(max(n // 8, 16) for n in pair) for pair in pairs]
                step[key] = pairs if pairs[1:] else pairs[0]
        shrink(step.get('transforms', []))


def reduce(cfg, root):
    """Our config with a tiny model, tiny images of mini COCO and two iterations."""
    model = cfg.model
    backbone = dict(TINY, type=model.backbone.type, out_indices=model.backbone.out_indices)
    if model.backbone.arch in ('huge', 'giant'):
        backbone |= dict(
            post_norm=model.backbone.arch == 'giant',
            res_post_norm=model.backbone.arch == 'huge',
            dw_kernel_size=5,
            level2_post_norm=True,
            level2_post_norm_block_ids=[0],
            center_feature_scale=True,
            with_cp=True,
        )
    else:
        backbone['layer_scale'] = 1.0
    model.backbone = backbone
    model.neck.in_channels = [16 * 2**i for i in range(4)][-len(model.neck.in_channels) :]
    if 'DINO' in model.type:
        model.num_queries = 20
        model.dn_cfg.group_cfg.num_dn_queries = 10
        model.bbox_head.num_classes = len(MINI_COCO_CLASSES)
        model.encoder.num_layers = model.decoder.num_layers = 2
    else:
        roi_head = model.roi_head
        model.neck.out_channels = model.rpn_head.in_channels = model.rpn_head.feat_channels = 16
        heads = roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]
        for head in heads:
            head.update(in_channels=16, fc_out_channels=32, num_classes=len(MINI_COCO_CLASSES))
            if 'conv_out_channels' in head:
                head.conv_out_channels = 16
        if 'mask_head' in roi_head:
            roi_head.mask_head.update(
                in_channels=16, conv_out_channels=16, num_classes=len(MINI_COCO_CLASSES)
            )
            roi_head.mask_roi_extractor.out_channels = 16
        roi_head.bbox_roi_extractor.out_channels = 16
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 32
    cfg.train_dataloader.update(
        batch_size=BATCH,
        num_workers=0,
        persistent_workers=False,
        sampler=dict(type='InfiniteSampler'),
        batch_sampler=None,
    )
    cfg.train_dataloader.dataset.update(
        data_root=str(root),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=MINI_COCO_CLASSES),
    )
    shrink(cfg.train_dataloader.dataset.pipeline)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    # No warm-up: its first steps would round to nothing.
    cfg.param_scheduler = []
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    cfg.default_hooks.logger.update(interval=1)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.log_processor.by_epoch = False
    cfg.load_from = None
    cfg.randomness = dict(seed=0)
    return cfg


@pytest.mark.parametrize('kind', CONFIGS)
def test_two_iterations(kind, mini_coco, tmp_path):
    cfg = reduce(Config.fromfile(ROOT / 'configs' / CONFIGS[kind]), mini_coco)
    cfg.dump(tmp_path / 'config.py')
    run_tool('train', tmp_path / 'config.py', '--work-dir', tmp_path)
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    logged = [entry for entry in logged if 'loss' in entry]
    assert [entry['iter'] for entry in logged] == [1, 2]
    for entry in logged:
        assert all(math.isfinite(value) for value in entry.values())
        assert entry['loss'] > 0 and entry['grad_norm' if 'grad_norm' in entry else 'loss'] > 0
    if kind == 'cb-dino':
        assert {'loss_cls0_w0.5', 'loss_cls1', 'd0.dn_loss_iou0_w0.5', 'enc_loss_bbox1'} <= set(
            logged[0]
        )

    checkpoint = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    assert ('ema_state_dict' in checkpoint) == (kind == 'cascade-mask-rcnn-ema')
    # AdamW has a state for each parameter that got a gradient; its average is zero where all
    # gradients were.
    model = helpers.build(cfg)
    order = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [names[id(parameter)] for group in order for parameter in group['params']]
    state = checkpoint['optimizer']['state']
    assert set(state) == set(range(len(names))) and len(names) == len(list(model.parameters()))
    idle = {name for i, name in enumerate(names) if not state[i]['exp_avg'].any()}
    assert idle == IDLE.get(kind, set())


def tiny_model(kind, root):
    return helpers.build(reduce(Config.fromfile(ROOT / 'configs' / CONFIGS[kind]), root))


def samples(*counts):
    """Data samples of 64x96 images with so many objects each."""
    generator = torch.Generator().manual_seed(0)
    boxes = [torch.rand(n, 2, generator=generator) * 30 for n in counts]
    meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (64, 96))
    info = {
        'img_metas': [{**meta, 'scale_factor': (1.0, 1.0)}] * len(counts),
        'gt_bboxes': [torch.cat([b, b + 25], 1).tolist() for b in boxes],
        'gt_labels': [list(range(n)) for n in counts],
    }
    found = helpers.training_samples(info)
    for sample, n in zip(found, counts, strict=True):
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.reshape(n, 4)
    return found


@pytest.mark.parametrize('kind', ['dino', 'cb-dino'])
def test_images_without_objects(kind, tmp_path):
    model = tiny_model(kind, tmp_path).train()
    model.init_weights()
    losses = model.loss(torch.randn(2, 3, 64, 96), samples(0, 0))
    total = sum(value for name, value in losses.items() if 'loss' in name)
    assert total.isfinite()
    total.sum().backward()
    # Distributed training needs a gradient for each parameter, be it zero.
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == set()


def test_branches_of_cb_dino_are_those_of_dino(tmp_path):
    """With two images, each half of the batch has the losses of DINO on its features.

    Compared without the denoising queries, whose noise is drawn anew; the others do not see them.
    """
    torch.manual_seed(0)
    model = tiny_model('cb-dino', tmp_path).train()
    model.init_weights()
    images, data_samples = torch.randn(2, 3, 64, 96), samples(3, 1)
    losses = model.loss(images, data_samples)
    features = model.backbone(images)
    for branch, weight in enumerate((0.5, 1)):
        suffix = f'{branch}_w0.5' if weight == 0.5 else f'{branch}'
        head_inputs = model.forward_transformer(model.neck(features[branch]), data_samples)
        expected = InternImageDINOHead.loss(
            model.bbox_head, **head_inputs, batch_data_samples=data_samples
        )
        compared = [name for name in expected if 'dn_' not in name]
        assert len(compared) == 3 * 3  # two decoder layers and the encoder
        for name in compared:
            # Measured: 5e-7.
            torch.testing.assert_close(
                losses[name + suffix], weight * expected[name], rtol=1e-5, atol=1e-7
            )


def test_image_with_fewer_positions_than_queries(tmp_path):
    model = tiny_model('dino', tmp_path).eval()
    model.init_weights()
    # 4 + 1 + 1 + 1 positions for 20 queries
    with pytest.raises(ValueError, match='num_queries=20 .* this image has 7'):
        model(torch.randn(1, 3, 16, 16), samples(0), mode='predict')
