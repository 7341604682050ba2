"""A classification config in the terms of the official table."""

from internimage_mm.backbones import InternImage
from internimage_mm.backbones.presets import ALIASES, architecture

from .model_terms import LETTERS
from .results import results

_REFERENCE_BATCH = 512
_LAYER_DECAY = 'ClassificationLayerDecayOptimizerConstructor'
_NECKS = {
    'ConvPoolingNeck': {
        'conv': '1x1 conv C4 -> int(1.5*C4), no bias',
        'norm': 'BN',
        'act': 'GELU',
        'pool': 'global average',
        'fc': 'Linear(int(1.5*C4), num_classes)',
    },
    'AttentionPoolingNeck': {
        'x4': '1x1 conv C4->4096 (bias) + PixelShuffle(2) -> 1024 ch at stride 16',
        'x3': '1x1 conv C3->1024 (bias)',
        'merge': 'sum',
        'pool': 'attention pooling, dim 1024, 16 heads, qkv bias, mean-token query, out 768',
        'norm': 'LN(768, eps 1e-6)',
        'fc': 'Linear(768, num_classes)',
    },
}


def describe(cfg, model, optimizer, metafile_model, expected):
    """All terms of the table for a classifier.

    Args:
        cfg: Our config.
        model: What it builds.
        optimizer: The optimizer of ``cfg`` for ``model``.
        metafile_model: Its entry in the metafile.
        expected: The official settings.
    """
    head, total = cfg.model.head, cfg.auto_scale_lr.base_batch_size
    with_metadata = head.type == 'MetadataLinearClsHead'
    framework = 'InternImage classifier'
    if with_metadata:
        framework = 'InternImageMetaFormer (adds metadata branch)'
    scale = _REFERENCE_BATCH / total
    return {
        'task': 'image classification',
        'framework': framework,
        'dataset': _dataset(cfg),
        'num_classes': _num_classes(cfg),
        'backbone': _backbone(cfg, expected['backbone']),
        'head': _head(cfg, model),
        'optimizer': _optimizer(cfg, model, optimizer, scale),
        'schedule': _schedule(cfg, scale),
        'batch': {'total': total, 'effective_lr': cfg.optim_wrapper.optimizer.lr},
        'amp': {'AmpOptimWrapper': 'native fp16 autocast during training'}[cfg.optim_wrapper.type],
        'ema': _ema(cfg),
        'train_pipeline': _train_pipeline(cfg),
        'input_size': _input_size(cfg),
        'test_pipeline': _test_pipeline(cfg),
        'pretrained': cfg.load_from and cfg.load_from.rpartition('/')[2],
        'rand_init_ft_head': _small_random_head(head),
        'results': results(metafile_model, expected['results']),
    }


def _dataset(cfg):
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert cfg.test_dataloader == cfg.val_dataloader
    if train.type == 'ImageNet':
        assert (train.split, val.split) == ('train', 'val')
        return 'ImageNet-1K'
    assert train.type == 'INaturalist2018'
    assert (train.ann_file, val.ann_file) == ('train2018.json', 'val2018.json')
    return 'iNaturalist 2018'


def _num_classes(cfg):
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes
    return cfg.model.head.num_classes


def _backbone(cfg, expected):
    given = dict(cfg.model.backbone)
    assert 'init_cfg' not in given
    name = ALIASES.get(given['arch'], given['arch'])
    settings = {**InternImage.DEFAULTS, **architecture(name), **given}
    neck = cfg.model.neck
    clip = neck.type == 'AttentionPoolingNeck'
    assert list(settings['out_indices']) == ([2, 3] if clip else [3])
    settings.update(
        type='InternImage (classification copy)',
        variant=LETTERS[name],
        use_clip_projector=clip,
        # The constructor argument of a head that a model with CLIP projector does not have.
        cls_scale=1.5 if clip else neck.out_channels / neck.in_channels,
    )
    assert settings['frozen_stages'] == InternImage.DEFAULTS['frozen_stages']
    return {key: settings[key] for key in expected}


def _head(cfg, model):
    """The texts of the table, after a look at the modules that they describe."""
    neck, kind = model.neck, cfg.model.neck.type
    last = 8 * model.backbone.patch_embed.conv2.out_channels
    if kind == 'ConvPoolingNeck':
        conv, norm, act = neck.conv_head
        assert conv.bias is None and conv.kernel_size == (1, 1)
        assert (conv.in_channels, conv.out_channels) == (last, int(1.5 * last))
        assert 'BatchNorm2d' in str(norm) and type(act).__name__ == 'GELU'
        width = int(1.5 * last)
    else:
        x4, shuffle = neck.dcnv3_head_x4
        x3, attention = neck.dcnv3_head_x3, neck.clip_projector.cross_dcn
        assert shuffle.upscale_factor == 2
        assert (x4.in_channels, x4.out_channels, x4.kernel_size) == (last, 4096, (1, 1))
        assert (x3.in_channels, x3.out_channels, x3.kernel_size) == (last // 2, 1024, (1, 1))
        assert x4.bias is not None and x3.bias is not None and attention.q_bias.shape == (1024,)
        assert attention.num_heads == 16 and attention.proj.out_features == 768
        (norm,) = [m for m in neck.fc_norm.modules() if type(m).__name__ == 'LayerNorm']
        assert (norm.normalized_shape, norm.eps) == ((768,), 1e-6)
        width = 768
    fc = model.head.fc
    assert (fc.in_features, fc.out_features) == (width, cfg.model.head.num_classes)
    return _NECKS[kind]


def _optimizer(cfg, model, optimizer, scale):
    wrapper = cfg.optim_wrapper
    settings = dict(wrapper.optimizer)
    described = {
        'base_lr': settings.pop('lr') * scale,
        **settings,
        'clip_grad_norm': wrapper.clip_grad.max_norm,
    }
    if _no_decay(model, optimizer, wrapper.optimizer.weight_decay):
        described['no_decay'] = '1-D params and names ending .bias'
    layers = wrapper.get('constructor') == _LAYER_DECAY
    paramwise = wrapper.get('paramwise_cfg', {})
    mult = paramwise.get('dcn_lr_mult') if layers else None
    described['layer_decay'] = {
        'enabled': layers,
        'ratio': paramwise['layer_decay_rate'] if layers else None,
    }
    described['dcn_lr_mul'] = {'config': mult, 'active': mult is not None}
    return described


def _no_decay(model, optimizer, base):
    """Whether exactly the vectors and biases are without weight decay."""
    name_of = {id(param): name for name, param in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for param in group['params']:
            name = name_of[id(param)]
            seen.add(name)
            free = param.ndim == 1 or name.endswith('.bias')
            if group['weight_decay'] != (0.0 if free else base):
                return False
    return seen == set(name_of.values())


def _schedule(cfg, scale):
    (scheduler,) = schedulers(cfg)
    assert scheduler['T_max'] == scheduler['end'] == cfg.train_cfg.max_epochs
    by_iteration = scheduler.get('convert_to_iter_based', False)
    return {
        'epochs': cfg.train_cfg.max_epochs,
        'policy': 'cosine, per-iteration' if by_iteration else 'cosine',
        'warmup_epochs': scheduler.get('warmup', 0),
        'warmup_lr': scheduler.get('warmup_lr', 0.0) * scale,
        'min_lr': scheduler.get('eta_min', 0.0) * scale,
    }


def schedulers(cfg):
    """``param_scheduler`` as a list."""
    given = cfg.param_scheduler
    return [dict(s) for s in (given if isinstance(given, list) else [given])]


def _ema(cfg):
    hooks = [hook for hook in cfg.get('custom_hooks', []) if hook.type == 'EMAHook']
    if not hooks:
        return {'enabled': False}
    (hook,) = hooks
    assert hook.ema_type == 'ExponentialMovingAverage' and hook.update_buffers
    return {'enabled': True, 'decay': 1 - hook.momentum}


def _steps(pipeline):
    return {step['type']: step for step in pipeline}


def _input_size(cfg):
    return _steps(cfg.train_dataloader.dataset.pipeline)['RandomResizedCrop']['scale']


def _train_pipeline(cfg):
    steps = _steps(cfg.train_dataloader.dataset.pipeline)
    crop, rand = steps['RandomResizedCrop'], steps['RandAugment']
    described = {
        'hflip': steps['RandomFlip']['prob'],
        'random_erase': steps.get('RandomErasing', {}).get('erase_prob', 0.0),
        'label_smoothing': cfg.model.head.loss.label_smooth_val,
    }
    assert steps['RandomFlip']['direction'] == 'horizontal'
    defaults = (tuple(crop['crop_ratio_range']), tuple(crop['aspect_ratio_range']))
    if defaults == ((0.08, 1.0), (3 / 4, 4 / 3)) and crop['backend'] == 'pillow':
        described['random_resized_crop'] = (
            f'timm create_transform defaults, {crop["interpolation"]}'
        )
    if rand['policies'] == 'timm_increasing' and rand['num_policies'] == 2:
        magnitude = 10 * rand['magnitude_level'] // rand['total_level']
        described['auto_augment'] = f'rand-m{magnitude}-mstd{rand["magnitude_std"]}-inc1'
    augments = cfg.model.get('train_cfg', {}).get('augments', [])
    described.update(mixup=0.0, cutmix=0.0)
    if augments:
        assert 'probs' not in cfg.model.train_cfg  # one of them for each batch, equally often
        described.update({augment.type.lower(): augment.alpha for augment in augments})
        described.update(mixup_prob=1.0, mixup_switch_prob=1 / len(augments))
    return described


def _test_pipeline(cfg):
    steps = _steps(cfg.test_dataloader.dataset.pipeline)
    resize, crop = steps['ResizeEdge'], steps['CenterCrop']
    assert resize['edge'] == 'short' and resize['backend'] == 'pillow'
    preprocessor = cfg.model.data_preprocessor
    return {
        'resize_short_edge': resize['scale'],
        'interpolation': f'{resize["interpolation"]} (PIL)',
        'center_crop': crop['crop_size'],
        'crop_pct': crop['crop_size'] / resize['scale'],
        'mean': [round(value / 255, 6) for value in preprocessor.mean],
        'std': [round(value / 255, 6) for value in preprocessor.std],
        'rgb': preprocessor.to_rgb,
    }


def _small_random_head(head):
    override = head.init_cfg.get('override')
    if override is None:
        return False
    assert override['name'] == 'fc' and abs(override['std'] / head.init_cfg.std - 0.001) < 1e-9
    return True
