"""Which part of an array the golden data keeps: the endings of the stored names."""

import re


def part_of(array, name):
    """The part of an array that is stored under a name.

    Args:
        array: The whole array or tensor, (N, C, ...); for a statistic in double precision.
        name: ``<array>__<ending>__...``, endings applied in this order: ``every4ch`` and
            ``every5th_class`` take every n-th of the second axis, ``every3rd_pixel`` every n-th
            row and column, ``chmean`` and ``chstd`` are statistics of each channel.

    Raises:
        ValueError: For another ending.
    """
    for ending in name.split('__')[1:]:
        if ending == 'chmean':
            array = array.mean((0, 2, 3))
        elif ending == 'chstd':
            array = array.std((0, 2, 3))
        elif match := re.fullmatch(r'every(\d+)(?:ch|th_class)', ending):
            array = array[:, :: int(match[1])]
        elif match := re.fullmatch(r'every(\d+)(?:rd|th)_pixel', ending):
            step = int(match[1])
            array = array[..., ::step, ::step]
        else:
            raise ValueError(f'ending {ending!r} of {name!r} is none of those known here')
    return array
