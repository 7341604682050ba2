"""CB-DINO: DINO on CB-InternImage, trained with a loss on each of the two backbones' features."""

from collections.abc import Sequence

import torch
from mmdet.models import ChannelMapper
from mmdet.structures import SampleList
from mmengine.registry import MODELS
from torch import Tensor

from .dino import InternImageDINO, InternImageDINOHead


@MODELS.register_module()
class CBChannelMapper(ChannelMapper):
    """Channel mapper shared by the backbones of a composite one.

    In training it maps the features of all of them, in testing those of one. Given the features of
    a single backbone, it is a ``ChannelMapper``.

    Args:
        cb_idx: Whose features are mapped in testing. Default 1, the lead backbone of two.
        **kwargs: Those of ``ChannelMapper``.
    """

    def __init__(self, *, cb_idx: int = 1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.cb_idx = cb_idx

    def forward(self, inputs: Sequence) -> tuple:
        if torch.is_tensor(inputs[0]):
            return super().forward(inputs)
        if self.training:
            return tuple(super(CBChannelMapper, self).forward(x) for x in inputs)
        return super().forward(inputs[self.cb_idx])


@MODELS.register_module()
class CBDINO(InternImageDINO):
    """DINO on a composite backbone of two.

    In training, transformer and head see the features of both backbones as two halves of one batch,
    each with its own denoising queries; :class:`CBDINOHead` weights the two losses. In testing they
    see those of the lead backbone. Any number of images per GPU is right; the official code is for
    one, with which this agrees.

    Takes the arguments of mmdet's ``DINO``. ``neck`` is a :class:`CBChannelMapper`.
    """

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Features of the lead backbone after the neck, each (N, C, h, w)."""
        _, lead = self.backbone(batch_inputs)
        return self.neck(lead)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Losses of both backbones' features, by name.

        Args:
            batch_inputs: Images (N, 3, H, W).
            batch_data_samples: Their ground truth.
        """
        branches = [self.neck(features) for features in self.backbone(batch_inputs)]
        features = tuple(torch.cat(level) for level in zip(*branches, strict=True))
        data_samples = list(batch_data_samples) * len(branches)
        head_inputs = self.forward_transformer(features, data_samples)
        return self.bbox_head.loss(**head_inputs, batch_data_samples=data_samples)


@MODELS.register_module()
class CBDINOHead(InternImageDINOHead):
    """DINO head whose batch is, in training, the same images once for each of two backbones.

    Args:
        cb_first_weight: Weight of the losses of the first half, the assisting backbone. Those of
            the second half have weight 1. Default 0.5.
        **kwargs: Those of mmdet's ``DINOHead``.
    """

    def __init__(self, *args, cb_first_weight: float = 0.5, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.cb_first_weight = cb_first_weight

    def loss(
        self,
        hidden_states: Tensor,
        references: list[Tensor],
        enc_outputs_class: Tensor,
        enc_outputs_coord: Tensor,
        batch_data_samples: SampleList,
        dn_meta: dict[str, int],
    ) -> dict[str, Tensor]:
        """Losses of the two halves of the batch, weighted.

        The official code adds the half and its weight to the names: ``loss_cls0_w0.5`` and
        ``loss_cls1``.

        Args:
            hidden_states: Queries, (layers, 2N, queries, C).
            references: Boxes that each layer started from, each (2N, queries, 4).
            enc_outputs_class: Class logits of the encoder's proposals, (2N, proposals, classes).
            enc_outputs_coord: Boxes of the proposals, (2N, proposals, 4).
            batch_data_samples: The ground truth of the N images, twice.
            dn_meta: Number and grouping of the denoising queries.
        """
        logits, boxes = self(hidden_states, references)
        images = len(batch_data_samples) // 2
        losses = {}
        for branch, weight in enumerate((self.cb_first_weight, 1.0)):
            half = slice(branch * images, (branch + 1) * images)
            branch_losses = self.loss_by_feat(
                logits[:, half],
                boxes[:, half],
                enc_outputs_class[half],
                enc_outputs_coord[half],
                [sample.gt_instances for sample in batch_data_samples[half]],
                [sample.metainfo for sample in batch_data_samples[half]],
                dn_meta,
            )
            suffix = f'{branch}' if weight == 1 else f'{branch}_w{weight}'
            for name, value in branch_losses.items():
                losses[name + suffix] = weight * value
        return losses
