"""Python text of a config, short where it is short."""

import keyword
from itertools import groupby
from typing import Any

_WIDTH = 100
_RUN = 12  # values from which on repetitions are written as products


class Name(str):
    """A value that is a variable of the config, written without quotes."""


def format_config(config: dict[str, Any], header: str = '') -> str:
    """A Python file with one assignment per key.

    Args:
        config: Values are literals, dicts, lists, tuples and :class:`Name`.
        header: Written as a comment above.
    """
    comment = ''.join(f'# {line}'.rstrip() + '\n' for line in header.splitlines())
    blocks = [f'{key} = {_format(value, len(key) + 3, 0)}\n' for key, value in config.items()]
    return comment + ''.join(
        ('\n' if '\n' in block.rstrip('\n') or index == 0 else '') + block
        for index, block in enumerate(blocks)
    )


def _format(value: Any, column: int, indent: int) -> str:
    line = _one_line(value)
    if isinstance(value, list) and (runs := _runs(value)):
        return runs
    if column + len(line) < _WIDTH or not isinstance(value, (dict, list, tuple)) or not value:
        return line
    inner = indent + 4
    space = ' ' * inner
    if isinstance(value, dict):
        opening, closing = ('dict(', ')') if _is_call(value) else ('{', '}')
        items = []
        for key, item in value.items():
            label = f'{key}=' if _is_call(value) else f'{key!r}: '
            items.append(label + _format(item, inner + len(label) + 1, inner))
    else:
        opening, closing = '[]' if isinstance(value, list) else '()'
        items = [_format(item, inner + 1, inner) for item in value]
    body = ''.join(f'{space}{item},\n' for item in items)
    return f'{opening}\n{body}{" " * indent}{closing}'


def _runs(values: list) -> str:
    """``[1.0] * 150 + [0.1]``; empty if nothing is gained by it."""
    if any(isinstance(value, (dict, list, tuple)) for value in values):
        return ''
    groups = [(value, len(list(group))) for value, group in groupby(values)]
    if len(values) < _RUN or len(groups) > 2:
        return ''
    return ' + '.join(f'[{v!r}]' if count == 1 else f'[{v!r}] * {count}' for v, count in groups)


def _one_line(value: Any) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, dict):
        if _is_call(value):
            return f'dict({", ".join(f"{key}={_one_line(item)}" for key, item in value.items())})'
        return f'{{{", ".join(f"{key!r}: {_one_line(item)}" for key, item in value.items())}}}'
    if isinstance(value, list):
        return f'[{", ".join(map(_one_line, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(_one_line, value))}{"," if len(value) == 1 else ""})'
    return repr(value)


def _is_call(value: dict) -> bool:
    return all(
        isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value
    )
