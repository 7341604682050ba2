"""``python -m internimage_mm.env``: what is installed, what runs, which known conflict is hit."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import torch
from packaging.version import Version

from ops_dcnv3 import explain_backend, explain_fast_cpu

from .version import __version__

# Distribution names of each module: the last OpenMMLab release and the maintained fork.
STACK = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}
OTHERS = ('torchvision', 'numpy', 'opencv-python', 'opencv-python-headless', 'setuptools')


def installed(distribution: str) -> Version | None:
    """Version of a distribution, or None."""
    try:
        return Version(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return None


def import_error(module: str) -> str | None:
    """Why a module cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        return f'{type(error).__name__}: {error}'
    return None


def conflicts() -> list[str]:
    """Known conflicts of the installed packages, each with its way out."""
    found = []
    for module, (upstream, fork) in STACK.items():
        if installed(upstream) and installed(fork):
            found.append(
                f'{upstream} and {fork} are both installed and overwrite each other ({module}): '
                f'pip uninstall {upstream} {fork}, then install one of them'
            )
    setuptools = installed('setuptools')
    mmengine = installed('mmengine')
    if (
        mmengine
        and mmengine <= Version('0.10.7')
        and (setuptools is None or setuptools.major >= 82)
    ):
        found.append(
            f'mmengine {mmengine} imports pkg_resources, which setuptools {setuptools or "(none)"} '
            'does not have: pip install "setuptools<82"'
        )
    mmcv, onedl = installed('mmcv'), installed('onedl-mmcv')
    build = (
        f'python requirements/mmcv_build {f"onedl-mmcv=={onedl}" if onedl else "mmcv==2.1.0"} '
        '--no-cache-dir --force-reinstall --no-deps, in the source folder of internimage-mm'
    )
    for distribution in ('mmdet', 'mmsegmentation'):
        if mmcv and mmcv >= Version('2.2') and installed(distribution):
            found.append(f'{distribution} {installed(distribution)} refuses mmcv {mmcv}: {build}')
    if (mmcv or onedl) and (error := import_error('mmcv._ext')):
        found.append(
            f'mmcv has no usable operators ({error}). To compile them for your torch: {build}'
        )
    # "+cu130", "+cpu": what a build is for. Builds of the package index do not say.
    for_torch = Version(torch.__version__).local
    for_vision = torchvision_build()
    if for_torch and for_vision and for_torch != for_vision:
        found.append(
            f'torchvision is built for {for_vision}, torch for {for_torch}: its operators do not '
            'load. Unless "make" has set up this environment, importing mmdet.models or mmpretrain '
            'fails before internimage_mm is imported; install the torchvision of your torch'
        )
    return found


def torchvision_build() -> str | None:
    """What torchvision is built for, such as ``cu130``; None if it is missing or does not say."""
    package = importlib.util.find_spec('torchvision')
    if package is None or not package.submodule_search_locations:
        return None
    # Read, not imported: importing is what may fail. The metadata leave this part out.
    for folder in package.submodule_search_locations:
        file = Path(folder) / 'version.py'
        if file.is_file():
            version = re.search(r"__version__ *= *'([^']*)'", file.read_text())
            return Version(version[1]).local if version else None
    return None


def report() -> str:
    """The whole report as text."""
    lines = [
        f'internimage-mm {__version__}',
        f'Python {platform.python_version()} ({sys.executable}), {platform.platform()}',
        f'torch {torch.__version__}, CUDA '
        + (torch.cuda.get_device_name() if torch.cuda.is_available() else 'not available'),
    ]
    for module, distributions in STACK.items():
        versions = [f'{name} {installed(name)}' for name in distributions if installed(name)]
        text = f'{module}: {", ".join(versions) or "not installed"}'
        if versions and (error := import_error(module)):
            text += f', cannot be imported: {error}'
        lines.append(text)
    lines += [f'{name}: {installed(name) or "not installed"}' for name in OTHERS]
    for device in ('cpu', 'cuda')[: 1 + torch.cuda.is_available()]:
        try:
            lines.append(explain_backend(device))
        except (RuntimeError, ValueError) as error:  # OPS_DCNV3_BACKEND names what cannot run
            lines.append(f'dcnv3 on {device} cannot run: {error}')
    lines.append(explain_fast_cpu())
    found = conflicts()
    lines.append('known conflicts: ' + ('none' if not found else ''))
    lines += [f'  * {text}' for text in found]
    return '\n'.join(lines)


if __name__ == '__main__':
    print(report())
