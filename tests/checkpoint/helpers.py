"""Official weights, by the full lists of names and shapes of the released models."""

import gzip
import json

import torch
from golden.deterministic_weights import tensor_for
from golden_optim import GOLDEN_DIR, load_golden_optim

CLASSIFIERS = json.loads(
    gzip.decompress((GOLDEN_DIR / 'param_counts_classification.json.gz').read_bytes())
)
DINO = 'detection__coco__dino_4scale_internimage_t_1x_coco_layer_wise_lr'
CB_DINO = 'detection__coco__dino_4scale_cbinternimage_h_objects365_coco_ss'
MASK2FORMER = 'segmentation__nyu_depth_v2__mask2former_internimage_h_480_40k_nyu'
UPERNET = 'segmentation__ade20k__upernet_internimage_t_512_160k_ade20k'


def official_shapes(name):
    """Name to shape of all weights of a detector, a segmentor, or a classifier (``.yaml``)."""
    if name in CLASSIFIERS:
        return dict(CLASSIFIERS[name]['keys_shapes'])
    return load_golden_optim(name)['shapes']


def empty(shapes):
    """Tensors of these shapes that take no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def small(shapes, limit=8):
    """Deterministic weights, at most so large in each dimension."""
    return {
        name: torch.from_numpy(
            tensor_for(
                name,
                [min(n, limit) for n in shape],
                'int64' if name.endswith('num_batches_tracked') else 'float32',
            )
        )
        for name, shape in shapes.items()
    }


def giant():
    """A small official DINO with the marks of InternImage-G.

    Its feed-forward networks are in four parts, whose results are summed.
    """
    shapes = official_shapes(DINO)
    shapes['backbone.levels.0.blocks.0.dcn.center_feature_scale_proj_weight'] = [4, 64]
    out = {}
    for name, tensor in small(shapes, 64).items():
        stem, found, tail = name.partition('.ffns.0.layers.')
        if not found:
            out[name] = tensor
        elif tail == '1.bias':
            out[f'{stem}.ffns.0.fc2_bias'] = tensor
        else:
            fc, dim = ('fc2', 1) if tail == '1.weight' else ('fc1', 0)
            for i, part in enumerate(tensor.chunk(4, dim)):
                out[f'{stem}.ffns.0.{fc}_{i}.{tail.split(".")[-1]}'] = part.clone()
    return out
