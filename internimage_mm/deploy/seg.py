"""Segmentors of mmseg in exportable form, and exported ones as models of mmseg."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads import SegformerHead, UPerHead
from mmseg.models.utils import resize
from torch import Tensor

from .attention import PixelDecoder
from .exported import ExportedModel
from .forms import Form


class Segmentor(Form):
    """``image`` to ``labels`` (N, H, W), int64, and ``scores`` (N, classes, H / 4, W / 4).

    The scores (those of Mask2Former; of other heads their logits) are for those who resize them
    before they take the best class, as mmseg does when the picture has another size than ``image``.
    """

    family = 'segmentor'
    outputs = ('labels', 'scores')
    divisor = 1

    def __init__(self, model: Any, preprocess: dict | None) -> None:
        super().__init__(model, preprocess)
        head = model.decode_head
        if hasattr(head, 'semantic_map'):  # SemanticMask2FormerHead
            head.pixel_decoder = PixelDecoder(head.pixel_decoder)
            self.divisor = 32
        elif not isinstance(head, (UPerHead, SegformerHead)) or head.out_channels == 1:
            raise ValueError(
                'a segmentor with the head UPerHead, SegformerHead or SemanticMask2FormerHead and '
                f'2 classes or more can be exported, got {type(head).__name__} with '
                f'{head.out_channels}'
            )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.decode_head
        features = self.model.extract_feat(self.normalize(image))
        scores = getattr(head, 'semantic_map', head)(features)
        full = resize(
            scores, size=image.shape[2:], mode='bilinear', align_corners=head.align_corners
        )
        return full.argmax(1), scores


@MODELS.register_module()
class ExportedSegmentor(ExportedModel, EncoderDecoder):
    """An exported segmentor in place of mmseg's; windows and resizing are mmseg's.

    Args:
        file: The exported model.
        data_preprocessor: Of the config.
        test_cfg: Of the config's model.
        align_corners: Of its head.
    """

    def __init__(
        self, file: str, data_preprocessor: dict, test_cfg: dict, align_corners: bool
    ) -> None:
        super().__init__(file, data_preprocessor)
        self.test_cfg = test_cfg
        self.align_corners = align_corners
        self.out_channels = len(self.predictor.metadata['classes'])

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        height, width = inputs.shape[2:]
        scores = self.run(image=inputs)['scores'].to(inputs.device)
        # An image smaller than that of the exported model was padded.
        size = self.predictor.metadata['shape'] or (height, width)
        scores = resize(scores, size=size, mode='bilinear', align_corners=self.align_corners)
        return scores[:, :, :height, :width]


form_of = Segmentor
