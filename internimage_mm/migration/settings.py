"""Dicts that notice which of their keys were used, and what a migration has to tell its user."""

import re
from ast import literal_eval
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

_SHOWN = 70  # characters of a value in a message

_SILENT = (
    # Variables of which other settings of the old config were made.
    'classes crop_size data_root dataset_type depths img_norm_cfg img_scale norm_cfg num_classes '
    'num_stuff_classes num_things_classes pretrained test_pipeline train_pipeline val_pipeline '
    # How the old stack evaluated, not what; the runner said what checkpoints and logs count.
    'evaluation.pre_eval evaluation.by_epoch evaluation.gpu_collect evaluation.efficient_test '
    'checkpoint_config.by_epoch log_config.hooks.by_epoch custom_imports.allow_failed_imports '
    # Today's transforms, layers and necks know them; ffn_cfgs swallowed use_checkpoint, with_cp.
    '*.keys *.ToMask.ignore_index *.Resize.override model.*.type model.*.batch_first '
    'model.bbox_head.in_channels model.bbox_head.transformer.num_feature_levels '
    'model.*.ffn_cfgs.use_checkpoint model.*.ffn_cfgs.with_cp model.*.ffn_cfgs.split '
    # num_classes rules; the rest is of panoptic and instance segmentation.
    'model.decode_head.num_*_classes model.test_cfg.*_on model.test_cfg.max_per_image '
    'model.test_cfg.iou_thr model.test_cfg.filter_low_score'
)
# Settings without a place in the new config, by their place in the old one. With a tuple only these
# values are left out, any other is reported; with a text any value is, and the text says why.
_LEFT_OUT: dict[str, str | tuple] = {
    **dict.fromkeys(_SILENT.split(), ''),
    'workflow': ([('train', 1)],),
    'optimizer_config.distributed': 'mmengine finds out by itself',
    'checkpoint_config.create_symlink': 'mmengine writes the file last_checkpoint',
    'checkpoint_config.meta': 'mmengine saves the config by itself',
    'custom_hooks.resume_from': '--resume restores the average',
    'data.*.pipeline': 'the old stack did not use the pipeline of a wrapper either',
    'data.*.test_mode': (True, False),
    '*_pipeline*.file_client_args': ({'backend': 'disk'}, None),
    '*.LoadAnnotations.denorm_bbox': 'the OpenImages data set gives boxes in pixels now',
    '*.Collect.meta_keys': 'PackInputs has its own',
    'model.loss_weights': 'the official code never read it',
    'model.rule': (None,),
    'model.auxiliary_head': (None,),
    'model.train_cfg.snip_cfg': 'the official code never read it',
    'model.train_cfg.fed_loss_cfg': 'the official code never read it',
    'model.*.ffn_cfgs.dropout_layer': 'there is none',
    'model.*coder.init_cfg': (None,),
    'model.decode_head.in_index': ([0, 1, 2, 3],),
}


@dataclass
class Report:
    """Remarks of one migration, each a pair (setting of the old config, what about it)."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    """What was not translated: the new config lacks it."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """What was translated, or rightly left out, in a way that deserves a word."""

    def text(self) -> str:
        """Both lists for a terminal; empty if there is nothing to tell."""
        titles = 'not translated, the new config lacks it:', 'worth knowing:'
        return '\n'.join(
            '\n'.join([title, *(f'  {name}: {text}' for name, text in dict.fromkeys(remarks))])
            for title, remarks in zip(titles, (self.problems, self.notes), strict=True)
            if remarks
        )


class Settings:
    """A dict of the old config whose keys are taken out one by one.

    Args:
        values: The dict; it is not changed.
        path: Where it is in the old config, for messages.
        report: Where :meth:`close` tells what nobody took.
    """

    def __init__(self, values: dict, path: str, report: Report) -> None:
        self._values = dict(values)
        self._parts: list[Settings] = []
        self.path = path
        self.report = report

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, which now counts as translated."""
        return self._values.pop(key, default)

    def keep(self, keys: str) -> dict:
        """Those of ``keys`` that are there.

        ``'old>new'`` gives one a new name, ``'old=3'`` is 3 if it is missing, ``'old>new=3'`` both.
        """
        kept = {}
        for key in keys.split():
            name, has_default, default = key.partition('=')
            old, _, new = name.partition('>')
            if old in self or has_default:
                kept[new or old] = self.take(old, has_default and literal_eval(default))
        return kept

    def rest(self) -> dict:
        """Everything that is left."""
        values, self._values = self._values, {}
        return values

    def section(self, key: str) -> 'Settings':
        """The dict of ``key``, empty if missing or None."""
        return self._part(key, self.take(key) or {})

    def sections(self, key: str, value: Any = None) -> list['Settings']:
        """The dicts in the list ``key`` (or ``value``); a dict alone is a list of one."""
        value = self._values.pop(key) if value is None else value
        if isinstance(value, dict):
            return [self._part(key, value)]
        return [self._part(f'{key}[{index}]', part) for index, part in enumerate(value)]

    def _part(self, key: str, values: dict) -> 'Settings':
        self._parts.append(Settings(values, self._place(key), self.report))
        return self._parts[-1]

    def _place(self, key: str) -> str:
        return '.'.join(filter(None, (self.path, key)))

    def problem(self, key: str, why: str) -> None:
        """Report that ``key`` (all of this, if empty) is not translated."""
        self.report.problems.append((self._place(key), why))

    def note(self, key: str, what: str) -> None:
        self.report.notes.append((self._place(key), what))

    def close(self) -> None:
        """Report what is left, here and in all sections, as not translated or left out."""
        for key, value in self.rest().items():
            place = re.sub(r'\[\d+\]', '', self._place(key))
            rule = next((rule for name, rule in _LEFT_OUT.items() if fnmatchcase(place, name)), ())
            if isinstance(rule, str):
                if rule and value:
                    self.note(key, f'{shorten(value)} is left out: {rule}')
            elif value not in rule:
                self.problem(key, f'no rule for {shorten(value)}')
        for part in self._parts:
            part.close()


def shorten(value: Any) -> str:
    """``repr`` in at most about 70 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'
