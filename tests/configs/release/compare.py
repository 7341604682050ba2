"""Differences between two nested settings, and those that have an explanation."""

import math
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

_EXPLAINED = yaml.safe_load((Path(__file__).parents[1] / 'explained_differences.yml').read_text())
MISSING = '(missing)'


def leaves(value, path=''):
    """Every leaf of nested dicts and of lists that hold any; (path, value) pairs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f'{path}.{key}' if path else str(key))
    elif isinstance(value, (list, tuple)) and any(map(_is_nested, value)):
        for index, inner in enumerate(value):
            yield from leaves(inner, f'{path}[{index}]')
    else:
        yield path, list(value) if isinstance(value, (list, tuple)) else value


def _is_nested(value):
    return isinstance(value, (dict, list, tuple))


def same(a, b):
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        try:
            # Five digits where the table was rounded (img_ratios), equality elsewhere.
            return math.isclose(a, b, rel_tol=0, abs_tol=5e-7) if 0.1 < abs(b) < 10 else a == b
        except TypeError:
            return False
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def differences(official, ours):
    """{path: (official, ours)} of every leaf that is not the same on both sides."""
    left, right = dict(leaves(official)), dict(leaves(ours))
    return {
        path: (left.get(path, MISSING), right.get(path, MISSING))
        for path in sorted({*left, *right})
        if path not in left or path not in right or not same(left[path], right[path])
    }


class Explanations:
    """One list of ``explained_differences.yml``; remembers which of its entries were needed."""

    def __init__(self, chapter):
        self.entries = _EXPLAINED[chapter]
        self.used = set()

    def unexplained(self, config, found):
        """Those of ``found`` that no entry explains."""
        left = {}
        for path, values in found.items():
            matching = [
                index for index, entry in enumerate(self.entries) if _matches(entry, config, path)
            ]
            self.used.update(matching)
            if not matching:
                left[path] = values
        return left

    def unused(self):
        """Entries that explained nothing."""
        return [e for index, e in enumerate(self.entries) if index not in self.used]


def _matches(entry, config, path):
    # Brackets are indices here, not sets of characters.
    def match(text, patterns):
        patterns = patterns if isinstance(patterns, list) else [patterns]
        return any(fnmatchcase(text, p.replace('[', '[[]')) for p in patterns)

    return match(config, entry.get('configs', '*')) and match(path, entry['settings'])


def listing(found):
    """Differences as text, one a line."""
    return '\n'.join(f'{path}: official {a!r}, ours {b!r}' for path, (a, b) in found.items())
