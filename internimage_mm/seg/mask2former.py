"""Mask2Former's head with the official order of post-processing."""

import torch
from mmengine.registry import MODELS
from mmseg.models.decode_heads.mask2former_head import Mask2FormerHead
from mmseg.models.utils import resize
from torch import Tensor


@MODELS.register_module()
class SemanticMask2FormerHead(Mask2FormerHead):
    """mmseg's ``Mask2FormerHead`` with the official release's way from queries to the label map.

    Arguments, weights and losses are mmseg's.

    The class scores are mixed into a semantic map at the resolution of the mask features (stride
    4), and that map of probabilities is then upsampled. mmseg upsamples the mask *logits* first,
    which gives other numbers and needs queries / classes times the memory. It also upsamples to
    ``pad_shape`` even in a sliding window, where that is the size of the whole image.
    """

    def predict(self, x: tuple[Tensor, ...], batch_img_metas: list[dict], test_cfg: dict) -> Tensor:
        """Predict the semantic map of the last decoder layer.

        Args:
            x: Features of strides 4 to 32, (N, C_i, H_i, W_i).
            batch_img_metas: Meta information of the images; gives the size of the network input.
            test_cfg: Unused, part of mmseg's signature.

        Returns:
            Scores of shape (N, num_classes, H, W) at the size of the network input. They do not add
            up to 1 over the classes.
        """
        semantic_map = self.semantic_map(x)
        meta = batch_img_metas[0]
        # mmseg marks the size of a window, of which `pad_shape` knows nothing, by this type.
        if isinstance(meta['img_shape'], torch.Size):
            size = meta['img_shape']
        else:
            size = meta.get('pad_shape', meta['img_shape'])
        return resize(
            semantic_map, size=size[:2], mode='bilinear', align_corners=self.align_corners
        )

    def semantic_map(self, x: tuple[Tensor, ...]) -> Tensor:
        """The same at stride 4, (N, num_classes, H / 4, W / 4)."""
        cls_scores, mask_logits = (outputs[-1] for outputs in self(x, []))
        scores = cls_scores.softmax(dim=-1)[..., :-1]  # the last class is "no object"
        return torch.einsum('bqc,bqhw->bchw', scores, mask_logits.sigmoid())
