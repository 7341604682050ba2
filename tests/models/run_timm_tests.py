"""Runs functions of timm's own test suite on our models.

    python tests/models/run_timm_tests.py CHECKOUT_OF_TIMM [--models tiny ...] [--tests NAME ...]

CHECKOUT_OF_TIMM is a copy of https://github.com/huggingface/pytorch-image-models.
"""

import argparse
import importlib.util
import sys
import time
import traceback
from pathlib import Path

import internimage_mm.timm  # registers; before torchvision, which it prepares
from internimage_mm.backbones.presets import ARCHITECTURES

TESTS = (
    'test_model_forward',
    'test_model_backward',
    'test_model_default_cfgs',
    'test_model_forward_features',
    'test_model_forward_intermediates_features',
    'test_model_forward_intermediates',
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('checkout', type=Path)
    parser.add_argument('--models', nargs='+', default=['tiny'], choices=ARCHITECTURES)
    parser.add_argument('--tests', nargs='+', default=TESTS)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location(
        'timm_tests', args.checkout / 'tests' / 'test_models.py'
    )
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    failed = 0
    for arch in args.models:
        for name in args.tests:
            model = f'internimage_{arch}'
            if name == 'test_model_default_cfgs':  # needs a tag
                model += f'.{internimage_mm.timm.default_cfgs[model].tags[0]}'
            start = time.monotonic()
            try:
                getattr(suite, name)(model, 2 if 'backward' in name else 1)
                result = 'passed'
            except Exception:
                traceback.print_exc()
                result, failed = 'FAILED', failed + 1
            print(f'{result} {name}[{model}] {time.monotonic() - start:.1f} s', flush=True)
    return failed


if __name__ == '__main__':
    sys.exit(main())
