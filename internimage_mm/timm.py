"""``import internimage_mm.timm`` registers the models in timm, as ``internimage_tiny`` and so on.

Tags are the ImageNet-1k weights of the release, from the metafiles of the zoo.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from .backbones.presets import ARCHITECTURES
from .models import InternImageClassifier
from .models.factory import imagenet_models

__all__: list[str] = []

_NAME = re.compile(r'internimage-\w+?_(?:(?P<pre>.+)-pre_)?\d+xb\d+.*_in1k-(?P<size>\d+)')


def _weights(arch: str) -> dict[str, dict[str, Any]]:
    """Tag to timm's config of each file that the release has."""
    found = {}
    for model in imagenet_models(arch):
        match = _NAME.fullmatch(model['Name'])
        assert match is not None, model['Name']
        size = int(match['size'])
        tag = f'{match["pre"].replace("-", "_")}_ft_in1k' if match['pre'] else 'in1k'
        found[f'{tag}_{size}'] = _config(arch, size, url=model['Weights'], custom_load=True)
    return found


def _config(arch: str, size: int, **settings: Any) -> dict[str, Any]:
    stride = 16 if arch in ('huge', 'giant') else 32
    return dict(
        input_size=(3, size, size),
        pool_size=(size // stride, size // stride),
        crop_pct=1.0,
        interpolation='bicubic',
        num_classes=1000,
        first_conv='backbone.patch_embed.conv1',
        classifier='head.fc',
        license='mit',
        origin_url='https://github.com/OpenGVLab/InternImage',
        paper_ids='arXiv:2211.05778',
        **settings,
    )


default_cfgs = generate_default_cfgs(
    {
        f'internimage_{arch}.{tag}': config
        for arch in ARCHITECTURES
        for tag, config in _weights(arch).items()
    }
)


def _entrypoint(arch: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **settings: Any) -> nn.Module:
        if settings.get('feature_cls', 'getter') != 'getter':
            raise ValueError(f"feature_cls must be 'getter', got {settings['feature_cls']!r}")
        return build_model_with_cfg(
            InternImageClassifier,
            f'internimage_{arch}',
            pretrained,
            feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'),
            arch=arch,
            **settings,
        )

    create.__name__ = create.__qualname__ = f'internimage_{arch}'
    create.__doc__ = f'InternImage, size {arch}; arguments as of ``InternImageClassifier``.'
    return create


for _arch in ARCHITECTURES:
    globals()[f'internimage_{_arch}'] = register_model(_entrypoint(_arch))
