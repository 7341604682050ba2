"""Layer-wise learning-rate decay of the official classification release."""

from typing import Any

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from .base import LayerWiseConstructor

# The parts of a name that the official code looks for. In InternImage they are the offset layers of
# DCNv3 and its centre feature scale.
_DCN_PARTS = ('offset', 'attention_weights', 'center_feature_scale_proj', 'alpha_beta')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ClassificationLayerDecayOptimizerConstructor(LayerWiseConstructor):
    """Optimizer constructor of the ImageNet fine-tunings with layer decay.

    The learning rate of a parameter is ``lr * layer_decay_rate ** k``, ``k`` being the number of
    backbone blocks after its own: 0 for the last block, the end norm of the last stage, the norms
    between blocks of the third stage, neck and head; the stem belongs to the first block,
    downsampling and end norm of the other stages to the first block of the next stage. This is
    another rule than that of the detection and segmentation release
    (:class:`CustomLayerDecayOptimizerConstructor`). Parameters whose name contains ``offset`` or
    ``center_feature_scale_proj`` get ``dcn_lr_mult`` times that. One-dimensional parameters are not
    decayed (weight decay 0), all others are.

    There is one parameter group per learning rate and weight decay, with the keys ``params``,
    ``lr``, ``lr_scale``, ``weight_decay``, ``group_name`` and ``param_names``. Frozen parameters
    are in none.

    Args:
        optim_wrapper_cfg (dict): ``optimizer`` must give ``lr`` and ``weight_decay``.
        paramwise_cfg (dict): ``layer_decay_rate``, in (0, 1], and ``dcn_lr_mult`` (default 1.0).

    Raises:
        ValueError: An option is unknown, missing or out of range, ``lr`` or ``weight_decay`` is
            missing, or (when called) the model's ``backbone`` has no ``get_layer_depth``.
    """

    options = {'dcn_lr_mult': 1.0}

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        self.number('dcn_lr_mult')

    def add_params(self, params: list[dict], module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Append the parameter groups of the whole model ``module`` to ``params``."""
        get_layer_depth = getattr(getattr(module, 'backbone', None), 'get_layer_depth', None)
        if get_layer_depth is None:
            raise ValueError(
                f'{type(module).__name__} has no backbone that tells the layer of a parameter '
                '(get_layer_depth), which layer decay needs; InternImage does'
            )
        rate, dcn_lr_mult = self.option['layer_decay_rate'], self.option['dcn_lr_mult']

        def rule(name: str, param: nn.Parameter) -> tuple[str, float, bool]:
            layer, num_layers = get_layer_depth(name, prefix='backbone.')
            scale = rate ** (num_layers - 1 - layer)
            if any(part in name for part in _DCN_PARTS):
                scale *= dcn_lr_mult
            decayed = param.ndim > 1
            return f'{scale!r}_{"decay" if decayed else "no_decay"}', scale, decayed

        self.add_groups(params, module, rule)
