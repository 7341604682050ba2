"""Adds the low-rank updates of a LoRA training to the weights: one checkpoint without LoRA."""

import argparse

import torch

from internimage_mm.backbones import LoRAInternImage
from internimage_mm.commands import (
    UserError,
    add_config_options,
    check_output,
    load_config,
    reports_user_errors,
)
from internimage_mm.commands.inference import load_model
from internimage_mm.output_file import renamed_when_complete


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the training, with LoRAInternImage')
    parser.add_argument('checkpoint', help='checkpoint of the training')
    parser.add_argument('out', help='the file to write; it fits the config with InternImage')
    add_config_options(parser, 'model.backbone.rank=8')
    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_output(args.out)
    model = load_model(load_config(args.config, args.cfg_options), args.checkpoint)
    if not isinstance(model.backbone, LoRAInternImage):
        raise UserError(f'the backbone of {args.config} is no LoRAInternImage')
    model.backbone.merge()
    content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=model.dataset_meta))
    with renamed_when_complete(args.out) as unfinished:
        torch.save(content, unfinished)


if __name__ == '__main__':
    main()
