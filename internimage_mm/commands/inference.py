"""Models of the three libraries on one image."""

from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm

from ..checkpoint import fit_state_dict, read_checkpoint
from ..deploy.exported import is_exported, use_exported
from ..errors import UserError
from ..training import build_model
from .data import dataset_meta

SCOPES = ('mmdet', 'mmpretrain', 'mmseg')


def check_scope(cfg: Config) -> None:
    """Raise a :class:`UserError` if a config is for none of the three libraries."""
    if (scope := cfg.get('default_scope')) not in SCOPES:
        raise UserError(
            f'{cfg.filename} is for none of {", ".join(SCOPES)}: default_scope is {scope!r}'
        )


def load_model(cfg: Config, checkpoint_path: str, device: str = 'cpu') -> Any:
    """The model of a config with the weights of a checkpoint, ready for :func:`infer`.

    Args:
        cfg: The whole config.
        checkpoint_path: A checkpoint, or an exported model.
        device: Of the model; an exported one decides for itself.
    """
    if is_exported(checkpoint_path):
        put_exported(cfg, checkpoint_path)
        model: Any = build_model(cfg)
        metadata = model.predictor.metadata
        model.dataset_meta = {'classes': metadata['classes']}
        if metadata['palette']:
            model.dataset_meta['palette'] = [tuple(color) for color in metadata['palette']]
    else:
        checkpoint = read_checkpoint(checkpoint_path, mmap=True)
        model = revert_sync_batchnorm(build_model(cfg))
        model.load_state_dict(fit_state_dict(checkpoint, model, checkpoint_path), strict=False)
        meta = (checkpoint.get('meta') or {}).get('dataset_meta')
        model.dataset_meta = meta or dataset_meta(cfg)
    model.cfg = cfg
    return model.to(device).eval()


def put_exported(cfg: Config, file: str) -> None:
    """Put an exported model in place of the model of a config.

    Raises:
        UserError: It cannot be opened, or does another task.
    """
    check_scope(cfg)
    try:
        use_exported(cfg, file)
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error


def infer(model: Any, image: str | np.ndarray) -> Any:
    """The data sample that a model predicts for an image, by its library's own function.

    Args:
        model: From :func:`load_model`.
        image: A file, or, not for a classifier, pixels (h, w, 3), BGR, uint8.
    """
    scope = model.cfg.default_scope
    if scope == 'mmpretrain':
        from ..cls import classify_image

        return classify_image(model, str(image))
    if scope == 'mmdet':
        from mmdet.apis import inference_detector

        return inference_detector(model, image)
    from mmseg.apis import inference_model

    return inference_model(model, image)


def best_classes(model: Any, result: Any, count: int = 5) -> list[dict]:
    """The best classes of a classifier's data sample, which become its predicted labels.

    Args:
        model: From :func:`load_model`.
        result: From :func:`infer`.
        count: How many, if the classifier has so many.

    Returns:
        Best first: ``category``, the name of the class, and ``score``.
    """
    best = result.pred_score.topk(min(count, len(result.pred_score)))
    result.set_pred_label(best.indices)
    classes = model.dataset_meta.get('classes')
    return [
        {'category': classes[label] if classes else f'class {label}', 'score': round(score, 5)}
        for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
