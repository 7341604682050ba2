"""DINO (arXiv:2203.03605) where the official InternImage release differs from mmdet."""

import torch
from mmdet.models import DINO, DINOHead
from mmdet.models.layers import DinoTransformerDecoder
from mmdet.models.layers.transformer.utils import MLP, coordinate_to_encoding, inverse_sigmoid
from mmengine.registry import MODELS
from torch import Tensor, nn


class InternImageDINODecoder(DinoTransformerDecoder):
    """The DINO decoder of mmdet 3.3, which is that of the official release.

    The onedl fork encodes each coordinate of a reference box with twice as many numbers, so that no
    checkpoint of DINO, official or of mmdet, fits it.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        self.ref_point_head = MLP(2 * self.embed_dims, self.embed_dims, self.embed_dims, 2)

    def forward(
        self,
        query: Tensor,
        *,
        reference_points: Tensor,
        valid_ratios: Tensor,
        reg_branches: nn.ModuleList,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Run the layers, each of which refines the boxes that it starts from.

        Args:
            query: (N, queries, C).
            reference_points: Boxes (cx, cy, w, h) in 0..1, (N, queries, 4).
            valid_ratios: Share of each feature level that is image, not padding, (N, levels, 2).
            reg_branches: Box branch of each layer.
            **kwargs: What else a layer takes: ``value`` and the masks and shapes of the levels.

        Returns:
            Normalised queries after each layer, (layers, N, queries, C), and the boxes that each
            layer started from and the last one ended with, (layers + 1, N, queries, 4).
        """
        states, references = [], [reference_points]
        ratios = torch.cat([valid_ratios, valid_ratios], -1)[:, None]
        for i, layer in enumerate(self.layers):
            boxes = reference_points[:, :, None] * ratios
            encoding = coordinate_to_encoding(boxes[:, :, 0], num_feats=self.embed_dims // 2)
            query = layer(
                query,
                query_pos=self.ref_point_head(encoding),
                reference_points=boxes,
                valid_ratios=valid_ratios,
                **kwargs,
            )
            shift = reg_branches[i](query)
            refined = (shift + inverse_sigmoid(reference_points, eps=1e-3)).sigmoid()
            # The next layer's loss reaches this layer through the box, but not further back.
            references.append(refined)
            reference_points = refined.detach()
            states.append(self.norm(query))
        return torch.stack(states), torch.stack(references)


@MODELS.register_module()
class InternImageDINO(DINO):
    """The DINO of mmdet with the content queries initialised from N(0, 1), as officially.

    mmdet draws them from a narrow uniform distribution (within 0.07). It matters only for a
    training that does not start from a detector's checkpoint.

    Raises:
        ValueError: In a forward pass, an image too small for the number of queries.
    """

    def _init_layers(self) -> None:
        decoder: dict = self.decoder  # type: ignore[has-type]  # until the layers are built
        super()._init_layers()
        self.decoder = InternImageDINODecoder(**decoder)

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
