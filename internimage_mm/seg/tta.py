"""Multi-scale and flip testing of segmentors."""

from typing import Any

from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models.segmentors.seg_tta import SegTTAModel
from mmseg.structures import SegDataSample


@MODELS.register_module()
class MeanSoftmaxSegTTA(SegTTAModel):
    """Average the softmax over classes of all augmentations, at the size of the original image.

    The same as mmseg's ``SegTTAModel``, but it keeps one running sum instead of the maps of all
    augmentations (with 150 classes, a 1024x2048 image and 12 augmentations, 1.3 instead of 15 GB),
    and the averaged map is in the result. The softmax is also taken of Mask2Former's map, which
    holds probabilities already, as the official release does.

    Args:
        module: The segmentor or its config.
        data_preprocessor: As of :class:`mmengine.model.BaseTTAModel`.

    Raises:
        ValueError: The segmentor has a single output channel, over which there is no softmax.
    """

    def __init__(self, module: Any, data_preprocessor: Any = None) -> None:
        super().__init__(module, data_preprocessor)
        if self.module.out_channels < 2:
            raise ValueError(
                'MeanSoftmaxSegTTA needs a segmentor with at least 2 output channels, got '
                f"{self.module.out_channels}; for one with a sigmoid use type='mmseg.SegTTAModel'"
            )

    def test_step(self, data: dict) -> list[SegDataSample]:
        """Segment the augmented versions of each image and merge them.

        Args:
            data: What :class:`mmcv.transforms.TestTimeAug` and the collate function give:
                ``inputs`` and ``data_samples``, each a list (augmentations) of lists (images).

        Returns:
            One sample per image: ``seg_logits`` holds the mean softmax (classes, H, W),
            ``pred_sem_seg`` its argmax (1, H, W); the rest is that of the first augmentation.
        """
        merged: list[SegDataSample] = []
        for inputs, data_samples in zip(data['inputs'], data['data_samples'], strict=True):
            samples = self.module.test_step(dict(inputs=inputs, data_samples=data_samples))
            for sample in samples:
                sample.seg_logits = PixelData(data=sample.seg_logits.data.softmax(dim=0))
            if not merged:
                merged = samples
                continue
            for total, sample in zip(merged, samples, strict=True):
                total.seg_logits.data += sample.seg_logits.data
        for total in merged:
            mean = total.seg_logits.data / len(data['inputs'])
            total.seg_logits = PixelData(data=mean)
            total.pred_sem_seg = PixelData(data=mean.argmax(dim=0, keepdim=True))
        return merged
