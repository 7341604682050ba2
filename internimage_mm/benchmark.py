"""Time whole backbones on every backend, and models of mmpretrain; results are checked first."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ops_dcnv3 import available_backends, use_backend
from ops_dcnv3.benchmark import measure
from ops_dcnv3.modules import DCNv3

from .backbones import InternImage
from .backbones.presets import architecture
from .training.compilation import compile_blocks

TOLERANCES = {'float32': 1e-5, 'bfloat16': 5e-2, 'float16': 1e-2}
"""Largest distance of an output from that on ``reference``, relative to its norm, with which a
backend is timed. Measured with tiny at 256x256: 9e-7, 1.1e-2, 1.4e-3."""

GRADIENT_TOLERANCE = 5e-2
"""The same for the gradients of the parameters, in float32. Points that rounding puts on the other
side of a whole pixel have another offset gradient: a single one in the last level makes 8e-3 at
256x256, where float64 is within 1e-14."""

Calls = dict[str, Callable[[], tuple[Tensor, ...]]]

BESIDE = ('convnext-tiny', 'swin-tiny')
"""Models of mmpretrain that are timed too."""

LEVELS = 4
"""Outputs of a backbone"""

PASSES = {'forward': 'forward', 'forward_backward': 'forward + backward'}


def internimage(arch: str) -> nn.Module:
    """Return a backbone whose points are spread over about a pixel, with random masks."""
    torch.manual_seed(0)
    return spread_points(InternImage(arch=arch, drop_path_rate=0.0))


def spread_points(model: nn.Module) -> nn.Module:
    """Make the offset and mask layers of a model random, in place, and return it.

    Fresh ones are zero: all points would lie on the grid.
    """
    for module in model.modules():
        if isinstance(module, DCNv3):
            for layer in (module.offset, module.mask):
                # GELU gives a normalised input a mean square of 0.43.
                nn.init.normal_(layer.weight, std=(0.43 * layer.in_features) ** -0.5)
    return model


def check_names(archs: Iterable[str], beside: Iterable[str]) -> None:
    """Refuse models that cannot be built, before any is.

    Raises:
        ImportError: mmpretrain is needed for ``beside`` and cannot be imported.
        ValueError: Unknown name.
    """
    for arch in archs:
        try:
            architecture(arch)
        except ValueError as error:
            raise ValueError(f'--model: {error}') from error
    for name in beside:
        try:
            from mmpretrain.models import ConvNeXt, SwinTransformer
        except ImportError as error:
            raise ImportError(f'--beside {name} needs mmpretrain: {error}') from error
        known = [f'convnext-{arch}' for arch in ConvNeXt.arch_settings]
        known += [f'swin-{arch}' for arch in SwinTransformer.arch_zoo]
        if name not in known:
            raise ValueError(f'--beside must be of {", ".join(known)}, got {name!r}')


def theirs(name: str) -> nn.Module:
    """Return ``convnext-ARCH`` or ``swin-ARCH`` of mmpretrain with four outputs, like ours.

    :func:`check_names` tells which names there are.
    """
    from mmpretrain.models import ConvNeXt, SwinTransformer

    family, _, arch = name.partition('-')
    settings: dict[str, Any] = dict(arch=arch, drop_path_rate=0.0, out_indices=(0, 1, 2, 3))
    torch.manual_seed(0)
    if family == 'convnext':
        # Else its outputs are means over the pixels.
        return ConvNeXt(gap_before_final_norm=False, **settings)
    # Images below 224 pixels, with maps smaller than its windows, run too.
    return SwinTransformer(pad_small_map=True, **settings)


def forward(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    model.eval()
    with torch.inference_mode():
        return model(image)


def forward_backward(
    model: nn.Module, image: Tensor, gradients: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """A training step without its optimizer: outputs, and gradients of all parameters."""
    model.train()
    outputs = model(image)
    torch.autograd.backward(outputs, gradients)
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    return *outputs, *(gradient for gradient in found if gradient is not None)


def make_calls(model: nn.Module, image: Tensor, backend: str | None = None) -> Calls:
    """Return the calls to time by name. Halves are for inference: they have no backward."""

    def run_forward():
        with use_backend(backend):
            return forward(model, image)

    def run_both():
        with use_backend(backend):
            return forward_backward(model, image, gradients)

    if image.dtype != torch.float32:
        return dict(forward=run_forward)
    # Random: the outputs are normalised, so a mean of their squares, for example, has no gradient.
    torch.manual_seed(0)
    gradients = [torch.randn_like(output) for output in run_forward()]
    return dict(forward=run_forward, forward_backward=run_both)


def distance(results: Iterable[Tensor], truths: Iterable[Tensor]) -> float:
    """Largest distance of a tensor from its truth, relative to its norm; or NaN."""
    return measure.largest(
        ((result.double() - truth.double()).norm() / truth.double().norm()).item()
        for result, truth in zip(results, truths, strict=True)
    )


def check(calls: Calls, truths: Calls, dtype: str) -> dict[str, float]:
    """Return how far the results of each call are from those of ``reference``.

    Raises:
        RuntimeError: They are too far.
    """
    errors: dict[str, float] = {}
    for key, call in calls.items():
        results, expected = call(), truths[key]()
        parts = [('outputs', slice(LEVELS), TOLERANCES[dtype])]
        if key == 'forward_backward':
            parts.append(('gradients', slice(LEVELS, None), GRADIENT_TOLERANCE))
        for what, part, allowed in parts:
            error = distance(results[part], expected[part])
            if not error < allowed:
                raise RuntimeError(
                    f'wrong: {what} of {PASSES[key]} are {error:.1e} from those of reference, '
                    f'allowed {allowed:.1e}; it is not timed'
                )
            errors[key] = max(error, errors.get(key, 0.0))
    return errors


def run(
    archs: Sequence[str],
    beside: Sequence[str],
    image_size: tuple[int, int],
    dtype: str,
    device: str,
    seconds: float,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Check and time each architecture on every backend, and models of mmpretrain.

    With ``compiled`` it is timed a second time on the fastest backend, with compiled blocks. In
    halves the forward of the fastest backend is also checked and timed in float32. A model of
    mmpretrain that fails gets a row that says so.

    Raises:
        RuntimeError: A backend's results differ from those of ``reference``.
    """
    backends = [name for name, (ok, _) in available_backends(device).items() if ok]
    rng = torch.Generator().manual_seed(0)
    wide = torch.randn(1, 3, *image_size, generator=rng).to(device)
    image = wide.to(getattr(torch, dtype))
    rows: list[tuple[dict[str, Any], Calls]] = []
    for arch in archs:
        name = f'internimage-{arch}'
        for kind, x in {dtype: image, 'float32': wide}.items():
            model = internimage(arch).to(x)
            for backend in backends if kind == dtype else backends[:1]:
                row: dict[str, Any] = dict(model=name, backend=backend, dtype=kind)
                calls = make_calls(model, x, backend)
                if dtype != 'float32':
                    calls = dict(forward=calls['forward'])
                try:
                    row['errors'] = check(calls, make_calls(model, x, 'reference'), kind)
                except RuntimeError as error:
                    raise RuntimeError(f'{name} on backend {backend!r}: {error}') from error
                rows.append((row, calls))
        if compiled:
            truth, model = internimage(arch).to(image), internimage(arch).to(image)
            compile_blocks(model)
            row = dict(model=name, backend=backends[0], dtype=dtype, compiled='compiled')
            calls = make_calls(model, image, backends[0])
            row['errors'] = check(calls, make_calls(truth, image, 'reference'), dtype)
            rows.append((row, calls))
    for name in beside:
        row = dict(model=name, backend=None, dtype=dtype)
        model = theirs(name).to(image)
        try:
            calls = make_calls(model, image)
            for call in calls.values():
                call()
        except Exception as error:  # mmpretrain's Swin fails in halves, as of 1.2.0
            row['failure'] = measure.first_line(error)
            calls = {}
        rows.append((row, calls))
    measure.measure_calls(rows, device, seconds, in_turn=True)
    add_ratios([row for row, _ in rows], dtype)
    return [row for row, _ in rows]


def add_ratios(rows: list[dict[str, Any]], dtype: str) -> None:
    """Set ``row['ratios']`` of our rows: the times of other rows divided by those of the row.

    The other rows are those of the same model on another backend or in float32, and those of
    mmpretrain.
    """
    for row in rows:
        if row['backend'] in (None, 'reference') or row['dtype'] != dtype:
            continue
        others = [
            other
            for other in rows
            if other is not row and other['model'] == row['model'] or other['backend'] is None
        ]
        row['ratios'] = [
            dict(over=label(other))
            | {key: other[key]['ms'] / row[key]['ms'] for key in PASSES if key in row}
            for other in others
            if 'failure' not in other
        ]


def label(row: dict[str, Any]) -> str:
    return ' '.join(filter(None, (row['model'], row['backend'], row['dtype'], row.get('compiled'))))


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print what :func:`run` has returned."""
    width = max(len(label(row)) for row in rows)
    for key, title in PASSES.items():
        timed = [row for row in rows if key in row]
        if not timed:
            continue
        print(f'\n{title:<{width}} {"error":>8} {"ms":>9} {"peak MiB":>9}')
        for row in timed:
            error = f'{row["errors"][key]:.1e}' if 'errors' in row else '-'
            peak = row[key]['peak_mib']
            peak = '-' if peak is None else f'{peak:.0f}'
            print(f'{label(row):<{width}} {error:>8} {row[key]["ms"]:>9.1f} {peak:>9}')
    for row in rows:
        if 'failure' in row:
            print(f'\n{label(row)} failed: {row["failure"]}')
    print('\nratio of times')
    for row in rows:
        for ratio in row.get('ratios', ()):
            texts = [f'{title} {ratio[key]:.2f}x' for key, title in PASSES.items() if key in ratio]
            print(f'{label(row)} over {ratio["over"]}: {", ".join(texts)}')


def parse_image(text: str) -> tuple[int, int]:
    return measure.parse_sizes(text, 'H,W')  # type: ignore[return-value]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser('python -m internimage_mm.benchmark', description=__doc__)
    parser.add_argument(
        '--model', nargs='+', metavar='ARCH', default=['tiny'], help='tiny (default), small, ...'
    )
    parser.add_argument('--image', type=parse_image, metavar='H,W', default=(800, 1280))
    parser.add_argument(
        '--beside',
        nargs='*',
        metavar='NAME',
        help='models of mmpretrain to time too, convnext-ARCH or swin-ARCH (default: both in tiny, '
        'if mmpretrain is installed; no name: none)',
    )
    parser.add_argument(
        '--compile', action='store_true', help='time the models with compiled blocks too'
    )
    measure.add_options(parser, TOLERANCES)
    args = parser.parse_args(argv)
    measure.check_options(parser, args)
    beside = args.beside
    if beside is None:
        beside = BESIDE
        try:
            import mmpretrain  # noqa: F401
        except ImportError as error:
            print(f'without {", ".join(beside)}, since mmpretrain cannot be imported: {error}')
            beside = ()
    try:
        check_names(args.model, beside)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    result = measure.begin(args)
    height, width = args.image
    print(f'backbones, four outputs, one image of {height}x{width} pixels; times are medians')
    rows = run(args.model, beside, args.image, args.dtype, args.device, args.seconds, args.compile)
    report(rows)
    measure.write_json(args, result | dict(image=args.image, rows=rows))


if __name__ == '__main__':
    main()
