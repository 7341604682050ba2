"""DINO (arXiv:2203.03605) where the official InternImage release differs from mmdet."""

import torch
from mmdet.models import DINO, DINOHead
from mmdet.models.layers import inverse_sigmoid
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class InternImageDINO(DINO):
    """The DINO of mmdet with the content queries initialised from N(0, 1), as officially.

    mmdet draws them from a uniform distribution of 1/24 of that width. It matters only for a
    training that does not start from a detector's checkpoint.
    """

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.query_embedding.weight)


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
