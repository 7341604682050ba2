"""Builds models by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..backbones.presets import ALIASES, preset_name
from ..checkpoint import load_backbone
from ..shipped_configs import released_models
from .classifier import InternImageClassifier, read_weights
from .features import FeatureExtractor


def create_model(
    name: str,
    pretrained: bool | str = False,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] = (0, 1, 2, 3),
    in_chans: int = 3,
    **settings: Any,
) -> nn.Module:
    """Build an InternImage for any PyTorch program; needs neither mmengine nor a library above it.

    Args:
        name: ``'internimage_tiny'``, ``small``, ``base``, ``large``, ``xlarge``, ``huge`` or
            ``giant``, or t, s, b, l, xl, h, g.
        pretrained: True: the ImageNet-1k weights of the release. A string: a file or address, of
            any official layout or of ours; or the name of a model of the zoo, such as
            ``'mask-rcnn_internimage-t_fpn_1x_coco'``. False: random weights.
        features_only: Return a :class:`FeatureExtractor`, else an :class:`InternImageClassifier`.
        out_indices: With ``features_only``, the stages to return (0 to 3), or how many of the last.
        in_chans: Channels of the images. Pre-trained weights are adapted by timm's rule
            (:func:`~internimage_mm.models.classifier.adapt_input_conv`).
        **settings: As of :class:`InternImageClassifier`, ``num_classes`` among them, and of
            :class:`InternImage`. A ``num_classes`` other than that of the file starts a new
            classifier; with 1000, a file for ImageNet-22k gives those of its classes.

    Returns:
        The model, in training mode, as every new module.

    Raises:
        CheckpointError: The weights cannot be read, or the backbone does not fit.
        TypeError: Unknown argument.
        ValueError: Unknown name or stage, or settings that do not fit together.
    """
    arch = preset_name(name.removeprefix('internimage').lstrip('-_'))
    model = InternImageClassifier(arch, in_chans=in_chans, **settings)
    path = weights_of(arch, pretrained)
    if features_only:
        if path:
            load_backbone(model.backbone, read_weights(path, in_chans), path)
        return FeatureExtractor(model.backbone, out_indices)
    if path:
        model.load_pretrained(path)
    return model


def weights_of(arch: str, pretrained: bool | str) -> str | None:
    """The file or address that ``pretrained`` of :func:`create_model` stands for.

    Args:
        arch: Full name of a preset.
        pretrained: As of :func:`create_model`.

    Raises:
        ValueError: The zoo has such a model, but no weights of it.
    """
    if pretrained is True:
        return imagenet_models(arch)[0]['Weights']
    if isinstance(pretrained, str) and pretrained in released_models():
        if 'Weights' not in (model := released_models()[pretrained]):
            raise ValueError(f'the release has no weights of {pretrained}')
        return model['Weights']
    return pretrained or None


def imagenet_models(arch: str) -> list[dict[str, Any]]:
    """Metafile entries of the ImageNet-1k classifiers of a preset, one for each file of weights."""
    letter = next(alias for alias, name in ALIASES.items() if name == arch)
    weights: dict[str, dict[str, Any]] = {}
    for name, model in released_models().items():
        in_imagenet = model['Config'].startswith('configs/imagenet/')
        if in_imagenet and name.startswith(f'internimage-{letter}_') and 'Weights' in model:
            weights.setdefault(model['Weights'], model)
    return list(weights.values())
