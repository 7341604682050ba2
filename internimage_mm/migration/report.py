"""What a migration has to tell its user, and dicts that notice which of their keys were used."""

from dataclasses import dataclass, field
from typing import Any

_SHOWN = 70  # characters of a value in a message


@dataclass
class Report:
    """Remarks of one migration, each a pair (setting of the old config, what about it)."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    """What was not translated: the new config lacks it."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """What was translated, or rightly left out, in a way that deserves a word."""

    def problem(self, setting: str, why: str) -> None:
        if (setting, why) not in self.problems:
            self.problems.append((setting, why))

    def note(self, setting: str, what: str) -> None:
        if (setting, what) not in self.notes:
            self.notes.append((setting, what))

    def text(self) -> str:
        """Both lists for a terminal; empty if there is nothing to tell."""
        blocks = []
        for title, remarks in (
            ('not translated, the new config lacks it:', self.problems),
            ('worth knowing:', self.notes),
        ):
            if remarks:
                blocks.append('\n'.join([title, *(f'  {name}: {text}' for name, text in remarks)]))
        return '\n'.join(blocks)


class Settings:
    """A dict of the old config whose keys are taken out one by one.

    Args:
        values: The dict; it is not changed.
        path: Where it is in the old config, for messages.
        report: Where :meth:`close` tells what nobody took.
    """

    def __init__(self, values: dict, path: str, report: Report) -> None:
        self._values = dict(values)
        self.path = path
        self.report = report

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, which now counts as translated."""
        return self._values.pop(key, default)

    def peek(self) -> dict:
        """What nobody took so far; it stays."""
        return dict(self._values)

    def take_existing(self, *keys: str) -> dict:
        """Those of ``keys`` that are there, under the same names."""
        return {key: self._values.pop(key) for key in keys if key in self._values}

    def take_all(self) -> dict:
        """Everything that is left."""
        values, self._values = self._values, {}
        return values

    def section(self, key: str) -> 'Settings':
        """The dict of ``key`` (empty if missing or None), to be closed on its own."""
        return Settings(self._values.pop(key, None) or {}, self.below(key), self.report)

    def datasets(self, key: str) -> 'Settings':
        """The data set of ``key``; a list of data sets is a ``ConcatDataset`` of them."""
        value = self._values.pop(key)
        if isinstance(value, (list, tuple)):
            value = {'type': 'ConcatDataset', 'datasets': list(value)}
        return Settings(value, self.below(key), self.report)

    def below(self, key: str) -> str:
        """The path of ``key``."""
        return f'{self.path}.{key}' if self.path else key

    def ignore(self, key: str, *values: Any, why: str) -> None:
        """Take ``key`` and leave it out: in silence if it has one of ``values``, else noted."""
        if key in self._values and (value := self._values.pop(key)) not in values:
            self.report.note(self.below(key), f'{shorten(value)} is left out: {why}')

    def close(self) -> None:
        """Report every key that is left as not translated."""
        for key, value in self._values.items():
            self.report.problem(self.below(key), f'no rule for {shorten(value)}')
        self._values = {}


def shorten(value: Any) -> str:
    """``repr`` in at most about 70 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'
