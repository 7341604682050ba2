"""Outputs and gradients against golden data, float64 and a second library."""

import pytest
import torch
from op_cases import (
    ALL_BACKENDS,
    BACKENDS,
    BLOCK_CHANNELS,
    CASES,
    CUDA,
    CUDA_SHAPES,
    GOLDEN_TOLERANCES,
    GPU_SHAPES,
    LARGEST_SHAPE,
    NAMES,
    ODD_SHAPES,
    OTHERS,
    TOLERANCES,
    device_of,
    golden_case,
    golden_truth,
    random_inputs,
    relative_error,
    rounded,
    run,
)

from ops_dcnv3 import dcnv3

CUDA_RUNS = [(backend, dtype) for backend in CUDA for dtype in TOLERANCES]
RUNS = [*((backend, dtype) for backend in BACKENDS for dtype in TOLERANCES), *CUDA_RUNS]
GOLDEN_RUNS = [*RUNS, ('triton', torch.float32)]
# NumPy has no bfloat16, so Triton's interpreter converts it with code of its own.
NAN_RUNS = [*GOLDEN_RUNS, ('triton', torch.bfloat16)]


@pytest.mark.parametrize(('backend', 'dtype'), GOLDEN_RUNS, ids=str)
@pytest.mark.parametrize('case', CASES)
def test_golden(case, dtype, backend):
    tensors, options = golden_case(case)
    result = run(tensors, {**options, 'backend': backend}, dtype)
    truth = golden_truth(tensors, options, dtype)
    for name in NAMES:
        assert result[name].dtype == dtype
        assert relative_error(result[name], truth[name]) < GOLDEN_TOLERANCES[dtype], name


# One more run of each case, as the interpreter is slow; each of these seven turns up four times.
TRITON_RUNS = [(dtype, logits) for logits in (True, False) for dtype in TOLERANCES]
TRITON_RUNS.remove((torch.float32, False))


@pytest.mark.parametrize('case', CASES)
def test_golden_problems_in_triton(case):
    """The golden inputs in the other dtypes, and as logits, where the data say nothing."""
    dtype, logits = TRITON_RUNS[case % len(TRITON_RUNS)]
    tensors, options = golden_case(case)
    options['mask_is_logits'] = logits
    truth = run(rounded(tensors, dtype), {**options, 'backend': 'reference'}, torch.float64)
    result = run(tensors, {**options, 'backend': 'triton'}, dtype)
    for name in NAMES:
        assert result[name].dtype == dtype
        assert relative_error(result[name], truth[name]) < TOLERANCES[dtype], name


# Without the truth itself; slow backends in one dtype, as the golden problems have the others.
ODD_RUNS = [*RUNS, *((name, torch.float32) for name in OTHERS)]
ODD_RUNS.remove(('reference', torch.float64))


@pytest.mark.parametrize(
    ('shape', 'options', 'backend', 'dtype'),
    [
        pytest.param(*shape.values, backend, dtype, id=f'{shape.id}-{backend}-{dtype}')
        for shapes, runs in (
            (ODD_SHAPES, ODD_RUNS),
            (CUDA_SHAPES, CUDA_RUNS),
            ([LARGEST_SHAPE], [run for run in CUDA_RUNS if run[1] == torch.float32]),
            (GPU_SHAPES, [run for run in CUDA_RUNS if run[0].startswith('cuda')]),
        )
        for shape in shapes
        for backend, dtype in runs
    ],
)
@pytest.mark.parametrize('logits', [False, True], ids=['mask', 'logits'])
def test_equals_float64_reference(shape, options, backend, logits, dtype):
    tensors = random_inputs(*shape, **options)
    options = {**options, 'groups': shape[3], 'mask_is_logits': logits}
    truth = run(rounded(tensors, dtype), {**options, 'backend': 'reference'}, torch.float64)
    result = run(tensors, {**options, 'backend': backend}, dtype)
    for name in NAMES:
        assert result[name].shape == truth[name].shape
        assert not result[name].isnan().any(), name
        assert relative_error(result[name], truth[name]) < TOLERANCES[dtype], name


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_equals_mmcv_modulated_deform_conv(backend, scale):
    """mmcv orders points row by row, with (y, x) offsets, and scales neither."""
    modulated_deform_conv2d = pytest.importorskip('mmcv.ops').modulated_deform_conv2d
    batch, height, width, groups, group_channels, points = 2, 9, 11, 2, 4, 9
    tensors = random_inputs(batch, height, width, groups, group_channels, offset_scale=scale)
    output = dcnv3(
        tensors['input'].float(),
        tensors['offset'].float(),
        tensors['mask'].float(),
        groups=groups,
        offset_scale=scale,
        backend=backend,
    )
    order = [i * 3 + j for j in range(3) for i in range(3)]
    grid = torch.tensor([(j - 1.0, i - 1.0) for j in range(3) for i in range(3)])
    offset = tensors['offset'].reshape(batch, height, width, groups, points, 2)[..., order, :]
    offset = offset.flip(-1) * scale + (scale - 1) * grid
    mask = tensors['mask'].reshape(batch, height, width, groups, points)[..., order]
    channels = groups * group_channels
    expected = modulated_deform_conv2d(
        tensors['input'].permute(0, 3, 1, 2).float().contiguous(),
        offset.flatten(3).permute(0, 3, 1, 2).float().contiguous(),
        mask.flatten(3).permute(0, 3, 1, 2).float().contiguous(),
        torch.ones(channels, 1, 3, 3),
        None,
        1,
        1,
        1,
        channels,
        groups,
    )
    torch.testing.assert_close(output.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('backend', ['cpu', 'triton', *CUDA])
def test_softmax_of_large_and_infinite_logits(backend):
    tensors = random_inputs(1, 4, 5, 2, 8)
    logits = tensors['mask'] * 200 - 100
    logits[..., 3] = -torch.inf
    tensors['mask'] = logits
    options = dict(groups=2, mask_is_logits=True)
    tensors = rounded(tensors, torch.float32)
    logits = tensors['mask']
    truth = run(tensors, {**options, 'backend': 'reference'}, torch.float64)
    result = run(tensors, {**options, 'backend': backend}, torch.float32)
    for name in NAMES:
        assert relative_error(result[name], truth[name]) < TOLERANCES[torch.float32], name
    probabilities = logits.reshape(1, 4, 5, 2, 9).softmax(-1).flatten(3)
    explicit = run(
        {**tensors, 'mask': probabilities}, dict(groups=2, backend=backend), torch.float64
    )
    torch.testing.assert_close(truth['output'], explicit['output'])
    options['backend'] = backend
    nan = run({**tensors, 'mask': logits * torch.nan}, options, torch.float32)
    assert nan['output'].isnan().all()


@pytest.mark.parametrize(('backend', 'dtype'), NAN_RUNS, ids=str)
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 1e30, -1e30])
def test_wild_offsets_sample_nothing(value, backend, dtype):
    """A point with such an offset adds nothing; all others are as without it."""
    tensors = random_inputs(2, 5, 6, 2, 8)
    wild = tensors['offset'].clone()
    wild[:, 1, 2, 18] = value  # point 0 of group 1
    silent = tensors['mask'].clone()
    silent[:, 1, 2, 9] = 0.0
    options = dict(groups=2, backend=backend)
    result = run({**tensors, 'offset': wild}, options, dtype)
    expected = run({**tensors, 'mask': silent}, options, dtype)
    assert torch.equal(result['output'], expected['output'])
    if device_of(backend) == 'cpu' or backend == 'cuda ordered':
        assert torch.equal(result['grad_input'], expected['grad_input'])
    else:  # added up in another order each time
        assert relative_error(result['grad_input'], expected['grad_input']) < TOLERANCES[dtype]
    for name in ('grad_offset', 'grad_mask'):
        assert result[name].isfinite().all()
    assert (result['grad_offset'][:, 1, 2, 18:20] == 0).all()
    assert (result['grad_mask'][:, 1, 2, 9] == 0).all()


@pytest.mark.parametrize(('backend', 'dtype'), NAN_RUNS, ids=str)
def test_all_offsets_nan(backend, dtype):
    tensors = random_inputs(1, 4, 4, 2, BLOCK_CHANNELS)
    tensors['offset'].fill_(torch.nan)
    result = run(tensors, dict(groups=2, backend=backend), dtype)
    assert all((result[name] == 0).all() for name in NAMES)


@pytest.mark.parametrize(('backend', 'dtype'), NAN_RUNS, ids=str)
def test_nan_pixel_reaches_only_what_samples_it(backend, dtype):
    """Neither padding nor points outside may pick up a NaN at a corner of the image."""
    tensors = random_inputs(1, 6, 6, 1, BLOCK_CHANNELS)
    tensors['offset'].zero_()
    tensors['input'][0, 0, 0] = torch.nan
    output = run(tensors, dict(groups=1, backend=backend), dtype)['output']
    # Integer positions read the pixel to the right and below with weight 0, hence NaN as well.
    assert output[0, :2, :2].isnan().all()
    touched = output[0].isnan().any(-1)
    assert not touched[2:].any() and not touched[:, 2:].any()


# Output pixels (row, column) of a 5x5 image, and offsets (x, y) to half a pixel outside.
HALF_OUTSIDE = {
    (2, 0): (-0.5, 0.25),
    (0, 2): (0.25, -0.5),
    (2, 4): (0.5, 0.25),
    (4, 2): (0.25, 0.5),
    (0, 0): (-0.5, -0.5),
    (4, 4): (0.5, 0.5),
}


@pytest.mark.parametrize(('backend', 'dtype'), NAN_RUNS, ids=str)
@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_point_at_the_border_reads_nothing_further_in(backend, dtype, value):
    """Half a pixel outside each of the sides, only pixels of the outermost line are sampled."""
    tensors = rounded(random_inputs(1, 5, 5, 1, BLOCK_CHANNELS, kernel_size=1, padding=0), dtype)
    tensors['input'][0, 1:4, 1:4] = value
    for (row, column), offset in HALF_OUTSIDE.items():
        tensors['offset'][0, row, column] = torch.tensor(offset)
        options = dict(groups=1, kernel_size=1, padding=0, backend=backend)
        output = run(tensors, options, dtype)['output'][0, row, column]
        x, y = column + offset[0], row + offset[1]
        expected = 0
        for i in range(5):
            for j in range(5):
                if (weight := max(0, 1 - abs(x - i)) * max(0, 1 - abs(y - j))) > 0:
                    expected = expected + weight * tensors['input'][0, j, i]
        expected = expected * tensors['mask'][0, row, column]
        # The weights here are exact, so float32 is held to more than sums of many points.
        tolerance = min(TOLERANCES[dtype], 1e-6) if dtype.itemsize >= 4 else TOLERANCES[dtype]
        assert torch.allclose(output.double(), expected, rtol=tolerance), (row, column)


@pytest.mark.parametrize(('backend', 'dtype'), NAN_RUNS, ids=str)
@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_gradients_at_the_border_know_nothing_further_in(backend, dtype, value):
    """Those of points half a pixel outside are as if all pixels further in were zero."""
    tensors = random_inputs(1, 5, 5, 1, BLOCK_CHANNELS, kernel_size=1, padding=0)
    for place, offset in HALF_OUTSIDE.items():
        tensors['offset'][0][place] = torch.tensor(offset)
    options = dict(groups=1, kernel_size=1, padding=0, backend=backend)
    inner = (0, slice(1, 4), slice(1, 4))
    results = []
    for inside in (0, value):
        tensors['input'][inner] = inside
        results.append(run(tensors, options, dtype))
    expected, result = results
    assert relative_error(result['grad_input'], expected['grad_input']) < TOLERANCES[dtype]
    for place in HALF_OUTSIDE:
        for name in ('grad_offset', 'grad_mask'):
            assert torch.equal(result[name][0][place], expected[name][0][place]), (name, place)


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_a_gradient_goes_nowhere_from_points_outside(value, dtype):
    """Nor does the mask: 0 times infinity would be NaN."""
    tensors = random_inputs(1, 5, 6, 2, 16)
    tensors['offset'][0, 2, 3] = 1e6
    options = dict(groups=2, backend='cpu')
    results = []
    for gradient, mask in ((0.0, 0.0), (value, value)):
        tensors['grad_output'][0, 2, 3] = gradient
        tensors['mask'][0, 2, 3] = mask
        results.append(run(tensors, options, dtype))
    for name in NAMES:
        assert torch.equal(results[0][name], results[1][name]), name
    assert (results[1]['grad_offset'][0, 2, 3] == 0).all()
    assert (results[1]['grad_mask'][0, 2, 3] == 0).all()


@pytest.mark.parametrize('backend', ALL_BACKENDS)
def test_boundary_rule_is_strict(backend):
    """A point exactly on -1 or on the far side counts as outside, also for its gradients."""
    for column, position in ((0, -1.0), (0, 3.0)):
        tensors = random_inputs(1, 3, 3, 1, 2, kernel_size=1, padding=0)
        tensors['offset'].zero_()
        tensors['offset'][0, 1, column, 0] = position - column
        result = run(
            tensors, dict(groups=1, kernel_size=1, padding=0, backend=backend), torch.float64
        )
        assert (result['output'][0, 1, column] == 0).all()
        assert (result['grad_offset'][0, 1, column] == 0).all()


@pytest.mark.parametrize('axis', [1, 2])
@pytest.mark.parametrize('size', [2**24, 2**24 + 2])
def test_sides_that_no_float32_counts(size, axis):
    """From 2^24 on a float32 is no longer followed by that of the next pixel."""
    shape, kernel, stride, padding, grid = [1] * 4, [1, 1], [1, 1], [0, 0], [1] * 3
    shape[axis], kernel[axis - 1], stride[axis - 1], padding[axis - 1] = size, 5, 2**23, 2
    grid[axis] = 1 + (size - 1) // 2**23
    options = dict(kernel_size=tuple(kernel), stride=tuple(stride), padding=tuple(padding))
    rng = torch.Generator().manual_seed(0)
    image, mask = torch.rand(shape, generator=rng), torch.rand(*grid, 5, generator=rng)
    offset = torch.zeros(*grid, 5, 2)
    # The last pixel's points are at 2^24 and beside it, all exact.
    wanted = 2**24 + torch.tensor([-2, -1, 0, 2, 4])
    offset.view(-1, 5, 2)[-1, :, 2 - axis] = (
        wanted - (grid[axis] - 1) * 2**23 - torch.arange(-2, 3)
    ).float()
    results = []
    for backend, dtype in (('cpu', torch.float32), ('reference', torch.float64)):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (image, offset.flatten(3), mask)]
        output = dcnv3(*leaves, groups=1, **options, backend=backend)
        results.append([output, *torch.autograd.grad(output.sum(), leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected.float())


@pytest.mark.parametrize('backend', ['cpu', 'triton'])
@pytest.mark.parametrize(('batch', 'step'), [(3, 2**21), (1, 2**22)], ids=['batch', 'one image'])
def test_addresses_beyond_32_bits(batch, step, backend, monkeypatch):
    """Most of the 2^31 elements and more are never touched, so their memory is not needed."""
    if backend == 'triton':
        if device_of(backend) != 'cpu':
            pytest.skip('on a GPU their memory is needed')
        import triton.runtime.interpreter as interpreter

        # It copies every tensor back onto itself.
        monkeypatch.setattr(interpreter.GridExecutor, '_restore_args_dev', lambda *args: None)
    monkeypatch.setattr(torch.utils.deterministic, 'fill_uninitialized_memory', False)
    width, channels = step + 1, 512
    input = torch.empty(batch, 1, width, channels, dtype=torch.bfloat16)
    assert input.numel() > 2**31
    seen = torch.randn(batch, 1, 2, channels).bfloat16()
    input[:, :, ::step] = seen
    # A pixel has its neighbours as corners, with weight 0.
    input[:, :, 1] = 0.0
    offset, mask = torch.zeros(batch, 1, 2, 32 * 2), torch.ones(batch, 1, 2, 32)
    options = dict(kernel_size=1, stride=(1, step), padding=0, groups=32)
    output = dcnv3(input, offset.bfloat16(), mask.bfloat16(), **options, backend=backend)
    assert torch.equal(output, seen)


# The backward cuts images into bands; some of these offsets reach beyond the neighbouring one.
@pytest.mark.parametrize(
    ('shape', 'options'),
    [
        ((3, 19, 23, 6, 16), {}),
        ((1, 203, 5, 3, 16), {}),
        ((2, 211, 7, 3, 4), dict(stride=2)),
        ((1, 41, 13, 5, 4), {}),
        ((1, 83, 9, 2, 4), dict(dilation=3, padding=3)),
        ((1, 41, 9, 8, 4), {}),
        ((2, 17, 9, 11, 4), {}),
    ],
    ids=[
        'low images',
        'bands',
        'bands of stride 2',
        'short bands',
        'short bands of dilation 3',
        'groups in two turns',
        'an odd number of groups in two turns',
    ],
)
def test_deterministic_for_any_number_of_threads(shape, options):
    tensors = random_inputs(*shape, **options)
    far = torch.rand(tensors['offset'].shape, generator=torch.Generator().manual_seed(1)) < 0.02
    tensors['offset'][far] *= 20
    options = {**options, 'groups': shape[3]}
    truth = run(tensors, {**options, 'backend': 'reference'}, torch.float64)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7, 3):
            torch.set_num_threads(count)
            results.append(run(tensors, {**options, 'backend': 'cpu'}, torch.float32))
            exact = run(tensors, {**options, 'backend': 'cpu'}, torch.float64)
            for name in NAMES:
                assert relative_error(exact[name], truth[name]) < TOLERANCES[torch.float64], name
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in NAMES)


@pytest.mark.parametrize('backend', ALL_BACKENDS)
@pytest.mark.parametrize(
    'change',
    ['slices', 'slices of one image', 'permuted', (0,), (1,), (2,), (1, 2), (0, 1), (0, 1, 2)],
    ids=str,
)
def test_strided_tensors(change, backend):
    """Slices of a linear layer's output, other orders of dimensions, and broadcast dimensions."""
    # On the device before the change: a copy to a GPU would make them dense.
    device = device_of(backend)
    batch = 1 if change == 'slices of one image' else 2
    # Broadcast dimensions also where the width divides the channels.
    tensors = {key: t.to(device) for key, t in random_inputs(batch, 4, 6, 2, 8).items()}
    if change == 'permuted':
        tensors = {
            key: tensor.transpose(1, 2).contiguous().transpose(1, 2)
            for key, tensor in tensors.items()
        }
    elif isinstance(change, tuple):
        for key in ('offset', 'mask'):
            first = tensors[key]
            for dim in change:
                first = first.narrow(dim, 0, 1)
            tensors[key] = first.expand_as(tensors[key])
    else:
        joined = torch.cat([tensors['offset'], tensors['mask']], -1)
        tensors['offset'], tensors['mask'] = joined.split([36, 18], -1)
    assert not tensors['offset'].is_contiguous()
    options = dict(groups=2, backend=backend)
    result = run(tensors, options, torch.float64)
    dense = {key: tensor.contiguous() for key, tensor in tensors.items()}
    expected = run(dense, options, torch.float64)
    for name in NAMES:
        if device == 'cpu':
            assert torch.equal(result[name], expected[name]), name
        else:
            torch.testing.assert_close(result[name], expected[name], rtol=1e-12, atol=1e-12)


def test_cpu_copies_no_strided_view():
    """A copy of offset and mask would show in the peak of allocated memory."""
    joined = torch.randn(1, 64, 64, 4 * 27)
    offset, mask = joined.split([4 * 18, 4 * 9], -1)
    input = torch.randn(1, 64, 64, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        dcnv3(input, offset, mask, groups=4, backend='cpu')
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert allocated < 1.2 * input.numel() * 4
