"""The backbone against outputs and gradients of the official implementation.

Tolerances. The golden files hold float32 results of the official code and, for each, how far they
are from the same code in float64.

* Our float64 results must be the official float64 ones: the distance to the official float32
  results is the recorded one, and gradients, stored in float32, agree to its rounding.
* Our float32 results may be OUTPUT_FACTOR times as far from the official float32 ones as those are
  from float64: two implementations of equal accuracy come to at most 2. Measured: at most 1.58.
* A float32 gradient may be GRADIENT_FACTOR times as far (relative L2) from float64 as the worst
  official one of its case is. Measured: at most 0.95.
* Of the large or many other gradients only the norm is stored. NORM_FACTOR times that distance is
  allowed. Measured: 2.34 for a bias of two entries, sums over all pixels that almost cancel
  (h_like, center_feature_scale_proj_bias, one thread), and at most 0.7 for all others.

Measured on both backends, with PyTorch's AVX-512, AVX2 and plain kernels, with 1 and 2 threads.
"""

import numpy as np
import pytest
import torch
from backbones.helpers import (
    BACKENDS,
    GRADIENT_VARIANTS,
    VARIANTS,
    golden,
    golden_arrays,
    golden_backbone,
    golden_image,
)
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from internimage_mm import InternImage
from ops_dcnv3 import use_backend

OUTPUT_FACTOR = 2
GRADIENT_FACTOR = 2
NORM_FACTOR = 5
FLOAT32_ROUNDING = 2**-24

CASES = [(name, size) for name in VARIANTS for size in golden(name)['check']]


@pytest.mark.parametrize('name', VARIANTS)
def test_official_state_dict_and_parameter_count(name):
    """Of the official config as it is in a config file, where dicts are ConfigDicts."""
    file = golden(name)
    with torch.device('meta'):
        model = MODELS.build(ConfigDict(type='InternImage', **file['config']))
    assert type(model) is InternImage
    state = [(k, list(v.shape), str(v.dtype)) for k, v in model.state_dict().items()]
    assert state == [(k, shape, f'torch.{dtype}') for k, shape, dtype in file['keys']]
    assert sum(p.numel() for p in model.parameters()) == file['num_params']


def distances(outputs, name, size):
    """Largest absolute difference of each output to the official float32 one."""
    stored = golden_arrays(f'{name}__{size}')
    assert [tuple(o.shape) for o in outputs] == [
        stored[f'out{k}'].shape for k in range(len(stored))
    ]
    return [
        np.abs(output.double().numpy() - stored[f'out{k}']).max()
        for k, output in enumerate(outputs)
    ]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('name', 'size'), CASES)
def test_outputs(name, size, backend):
    with use_backend(backend), torch.no_grad():
        outputs = golden_backbone(name)(golden_image(size))
    assert isinstance(outputs, tuple)
    assert all(output.is_contiguous() and output.dtype == torch.float32 for output in outputs)
    recorded = golden(name)['check'][size]['f32_vs_f64_max_abs']
    for distance, noise in zip(distances(outputs, name, size), recorded, strict=True):
        assert distance <= OUTPUT_FACTOR * noise


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('name', 'size'), CASES)
def test_outputs_float64(name, size, backend):
    with use_backend(backend), torch.no_grad():
        outputs = golden_backbone(name).double()(golden_image(size).double())
    recorded = golden(name)['check'][size]['f32_vs_f64_max_abs']
    assert distances(outputs, name, size) == pytest.approx(recorded, rel=1e-6)


def test_core_op_pytorch_is_the_reference_backend():
    image = golden_image('64x96')
    with torch.no_grad():
        outputs = golden_backbone('l_like', core_op='DCNv3_pytorch')(image)
        by_backend = {}
        for backend in BACKENDS:
            with use_backend(backend):
                by_backend[backend] = golden_backbone('l_like')(image)
    assert all(map(torch.equal, outputs, by_backend['reference']))
    assert not all(map(torch.equal, outputs, by_backend['cpu']))


# ---- gradients ----------------------------------------------------------------------------------


def loss_and_gradients(name, dtype, backend, **changes):
    """Loss of the golden rule, gradients by parameter name, and the gradient of the image."""
    config = golden(f'{name}__grad_64x96')['config']
    model = golden_backbone(name, **{**config, 'core_op': 'DCNv3', **changes}).to(dtype).train()
    image = golden_image('64x96').to(dtype).requires_grad_()
    with use_backend(backend):
        loss = sum(
            (output * noise_like(output, seed=50 + k)).mean()
            for k, output in enumerate(model(image))
        )
        loss.backward()
    gradients = {k: p.grad.double().numpy() for k, p in model.named_parameters()}
    return loss.item(), gradients, image.grad.double().numpy()


def noise_like(tensor, seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).to(tensor.dtype)


def relative_errors(gradients, stored):
    """Relative L2 error of every gradient whose float64 values are stored."""
    names = [k.removeprefix('grad_f64/') for k in stored if k.startswith('grad_f64/')]
    assert len(names) >= 50
    return {
        k: np.linalg.norm(gradients[k] - stored[f'grad_f64/{k}'])
        / np.linalg.norm(stored[f'grad_f64/{k}'])
        for k in names
    }


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GRADIENT_VARIANTS)
def test_gradients_float64(name, backend):
    file, stored = golden(f'{name}__grad_64x96'), golden_arrays(f'{name}__grad_64x96')
    loss, gradients, image_gradient = loss_and_gradients(name, torch.float64, backend)
    assert loss == pytest.approx(file['loss_f64'], rel=1e-10)
    assert max(relative_errors(gradients, stored).values()) <= 1.01 * FLOAT32_ROUNDING
    difference = np.abs(image_gradient - stored['grad_image_f64']).max()
    assert difference <= 1.01 * FLOAT32_ROUNDING * file['grad_image_max_abs']
    # Of every gradient the norm is stored, the official float32 one, and the norm of its difference
    # to float64, which bounds how far the norms can be apart.
    norms = file['grad_l2_f32_and_l2_of_difference_to_f64']
    assert gradients.keys() == norms.keys()
    for key, (norm, difference) in norms.items():
        assert abs(np.linalg.norm(gradients[key]) - norm) <= difference, key


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GRADIENT_VARIANTS)
def test_gradients(name, backend):
    file, stored = golden(f'{name}__grad_64x96'), golden_arrays(f'{name}__grad_64x96')
    norms = file['grad_l2_f32_and_l2_of_difference_to_f64']
    noise = max(difference / norm for norm, difference in norms.values())
    tolerance = GRADIENT_FACTOR * noise
    loss, gradients, image_gradient = loss_and_gradients(name, torch.float32, backend)
    assert loss == pytest.approx(file['loss_f64'], rel=tolerance)
    assert max(relative_errors(gradients, stored).values()) <= tolerance
    difference = np.linalg.norm(image_gradient - stored['grad_image_f64'])
    assert difference <= tolerance * np.linalg.norm(stored['grad_image_f64'])
    assert gradients.keys() == norms.keys()
    for key, (norm, _) in norms.items():
        assert np.linalg.norm(gradients[key]) == pytest.approx(norm, rel=NORM_FACTOR * noise), key


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', GRADIENT_VARIANTS)
def test_with_cp_changes_no_bit(name, backend):
    loss, gradients, image_gradient = loss_and_gradients(name, torch.float32, backend)
    cp_loss, cp_gradients, cp_image_gradient = loss_and_gradients(
        name, torch.float32, backend, with_cp=True
    )
    assert cp_loss == loss
    assert np.array_equal(cp_image_gradient, image_gradient)
    for key, gradient in gradients.items():
        assert np.array_equal(cp_gradients[key], gradient), key
