"""The seven released sizes of InternImage.

Numbers: InternImage paper (arXiv:2211.05778), table 1 and appendix, and the official detection and
segmentation configs. ``layer_scale`` is the value used there; 1.0 also stands for the ImageNet
checkpoint of T, which was trained without layer scale.
"""

ARCHITECTURES: dict[str, dict] = {
    'tiny': dict(
        channels=64,
        depths=[4, 4, 18, 4],
        groups=[4, 8, 16, 32],
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=False,
    ),
    'small': dict(
        channels=80,
        depths=[4, 4, 21, 4],
        groups=[5, 10, 20, 40],
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=True,
    ),
    'base': dict(
        channels=112,
        depths=[4, 4, 21, 4],
        groups=[7, 14, 28, 56],
        layer_scale=1.0,
        offset_scale=1.0,
        post_norm=True,
    ),
    'large': dict(
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        layer_scale=1.0,
        offset_scale=2.0,
        post_norm=True,
    ),
    'xlarge': dict(
        channels=192,
        depths=[5, 5, 24, 5],
        groups=[12, 24, 48, 96],
        layer_scale=1.0,
        offset_scale=2.0,
        post_norm=True,
    ),
    'huge': dict(
        channels=320,
        depths=[6, 6, 32, 6],
        groups=[10, 20, 40, 80],
        layer_scale=None,
        offset_scale=1.0,
        post_norm=False,
        dw_kernel_size=5,
        res_post_norm=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29],
        center_feature_scale=True,
    ),
    'giant': dict(
        channels=512,
        depths=[2, 2, 48, 4],
        groups=[16, 32, 64, 128],
        layer_scale=None,
        offset_scale=1.0,
        post_norm=True,
        dw_kernel_size=5,
        res_post_norm=False,
        level2_post_norm=True,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29, 35, 41, 47],
        center_feature_scale=True,
    ),
}
"""Constructor arguments of :class:`InternImage` by preset name."""

ALIASES = {
    't': 'tiny',
    's': 'small',
    'b': 'base',
    'l': 'large',
    'xl': 'xlarge',
    'h': 'huge',
    'g': 'giant',
}


def preset_name(name: str) -> str:
    """The full name of a preset, from that or an alias, case-insensitive.

    Raises:
        ValueError: No such preset; the message lists all.
    """
    key = name.lower() if isinstance(name, str) else name
    key = ALIASES.get(key, key)
    if key not in ARCHITECTURES:
        known = ', '.join(f'{full} ({alias})' for alias, full in ALIASES.items())
        raise ValueError(f'unknown arch {name!r}; known are {known}')
    return key


def architecture(name: str) -> dict:
    """Return a copy of the preset ``name``; raise ValueError if there is none."""
    return dict(ARCHITECTURES[preset_name(name)])
