"""DINO (arXiv:2203.03605) where the official InternImage release differs from mmdet."""

import torch
from mmdet.models import DINO, DINOHead
from mmdet.models.layers.transformer.utils import MLP, inverse_sigmoid
from mmengine.registry import MODELS
from torch import Tensor, nn


class ReferencePointHead(MLP):
    """From encoded boxes to positional queries, in the official width.

    Officially and in mmdet 3.3, each of a box's four coordinates is encoded as the sine and cosine
    of 64 wavelengths. onedl-mmdetection takes 128, and twice the input channels in this layer, so
    that no published weights fit. Every other of its wavelengths is an official one, to the last
    bit; these are taken.

    Args:
        embed_dims: C, the channels of a query.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__(2 * embed_dims, embed_dims, embed_dims, 2)
        self.in_channels = 2 * embed_dims

    def forward(self, encoding: Tensor) -> Tensor:
        """Map (N, queries, 2 * C), or twice as many channels, to (N, queries, C)."""
        if encoding.shape[-1] == 2 * self.in_channels:
            # Pairs of sine and cosine; the second of two pairs is of a wavelength in between.
            encoding = encoding.unflatten(-1, (-1, 4))[..., :2].flatten(-2)
        return super().forward(encoding)


@MODELS.register_module()
class InternImageDINO(DINO):
    """The DINO of mmdet with the content queries initialised from N(0, 1), as officially.

    mmdet draws them from a narrow uniform distribution (within 0.07). It matters only for a
    training that does not start from a detector's checkpoint.

    And reference boxes are encoded as officially in every version of mmdet
    (:class:`ReferencePointHead`).

    Raises:
        ValueError: In a forward pass, an image too small for the number of queries.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        self.decoder.ref_point_head = ReferencePointHead(self.embed_dims)

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.query_embedding.weight)

    def pre_decoder(self, memory: Tensor, *args, **kwargs) -> tuple[dict, dict]:
        if memory.shape[1] < self.num_queries:
            raise ValueError(
                f'DINO picks num_queries={self.num_queries} positions of the feature maps, but '
                f'this image has {memory.shape[1]}: resize it to more, or set fewer queries'
            )
        return super().pre_decoder(memory, *args, **kwargs)


@MODELS.register_module()
class InternImageDINOHead(DINOHead):
    """The DINO head of mmdet with the official limit on reference boxes near the image's edge.

    Where the box regression is added to a reference box, coordinates (relative to the image) below
    0.001 or above 0.999 count as that. mmdet limits them to 1e-5 there, and to 0.001 everywhere
    else in DINO.
    """

    def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Classify and locate the queries after each decoder layer.

        Args:
            hidden_states: Queries, (layers, N, queries, C).
            references: Boxes (cx, cy, w, h) in 0..1 that each layer started from, each
                (N, queries, 4). One more than layers; the last one is not used.

        Returns:
            Class logits (layers, N, queries, classes) and boxes (layers, N, queries, 4) as
            (cx, cy, w, h) in 0..1.
        """
        logits, boxes = [], []
        for i, queries in enumerate(hidden_states):
            logits.append(self.cls_branches[i](queries))
            shift = self.reg_branches[i](queries)
            boxes.append((shift + inverse_sigmoid(references[i], eps=1e-3)).sigmoid())
        return torch.stack(logits), torch.stack(boxes)
