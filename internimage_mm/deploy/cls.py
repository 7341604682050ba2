"""Classifiers of mmpretrain in exportable form, and exported ones as models of mmpretrain."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from .exported import ExportedModel
from .forms import Form

METADATA = {'temporal': 4, 'spatial': 3}
"""Further inputs of the classifier of iNaturalist 2018, and how many numbers each has."""


class Classifier(Form):
    """``image`` to ``scores`` and ``logits``, both (N, classes).

    That of iNaturalist 2018 also takes ``temporal`` (N, 4) and ``spatial`` (N, 3), zeros where time
    and place of a picture are unknown (:class:`internimage_mm.cls.INaturalist2018`).
    """

    family = 'classifier'
    outputs = ('scores', 'logits')

    def __init__(self, model: nn.Module, preprocess: dict | None) -> None:
        super().__init__(model, preprocess)
        if hasattr(model.head, 'score'):
            self.inputs = ('image', 'temporal', 'spatial')

    def examples(self, height: int, width: int, dynamic: bool) -> tuple[dict, dict | None]:
        arguments, sizes = super().examples(height, width, dynamic)
        for name in self.inputs[1:]:
            arguments[name] = torch.zeros(len(arguments['image']), METADATA[name])
            if sizes is not None:
                sizes[name] = {0: sizes['image'][0]}
        return arguments, sizes

    def forward(
        self, image: Tensor, temporal: Tensor | None = None, spatial: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        features = self.model.extract_feat(self.normalize(image))
        head = self.model.head
        logits = head(features) if temporal is None else head.score(features, temporal, spatial)
        return logits.softmax(1), logits


@MODELS.register_module()
class ExportedClassifier(ExportedModel):
    """An exported classifier in place of mmpretrain's."""

    def predict(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        metadata = {
            name: torch.tensor([s.get(f'{name}_info', [0.0] * size) for s in data_samples])
            for name, size in METADATA.items()
        }
        scores = self.run(image=inputs, **metadata)['scores']
        for sample, score in zip(data_samples, scores, strict=True):
            sample.set_pred_score(score).set_pred_label(score.argmax().view(1))
        return data_samples


form_of = Classifier
