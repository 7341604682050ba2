"""One image through a classifier."""

from typing import Any

from mmengine.dataset import Compose, default_collate
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from torch import no_grad


def classify_image(model: Any, image_path: str) -> DataSample:
    """Classify an image file with the test pipeline of the model's config.

    Args:
        model (nn.Module): A classifier in evaluation mode with its config as ``model.cfg``.
        image_path: The image.

    Returns:
        Its data sample, with ``pred_score`` (num_classes,) and ``pred_label`` (1,), on the CPU.
    """
    with DefaultScope.overwrite_default_scope('mmpretrain'), no_grad():
        pipeline = Compose(model.cfg.test_dataloader.dataset.pipeline)
        (result,) = model.test_step(default_collate([pipeline(dict(img_path=image_path))]))
    return result.cpu()
