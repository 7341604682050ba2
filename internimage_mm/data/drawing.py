"""Shapes, patterns and painting shared by the mini data sets.

An image is painted back to front into a float32 picture and an integer label map of the same size
at once, so the labels are the drawing: a pixel belongs to the topmost thing that covers at least
half of it.
"""

from collections.abc import Sequence

import cv2
import numpy as np

SPLITS = ('train', 'val')

_SUPERSAMPLING = 4
# Sub-pixel bits of the fixed-point coordinates of cv2.fillPoly.
_SHIFT = 4


def image_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Random numbers of one image, the same however many images there are."""
    return np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))


# Outlines.


def _polar(radii: Sequence[float] | np.ndarray, start: float = -np.pi / 2) -> np.ndarray:
    """Outline through evenly spaced angles from ``start`` on, which is up by default."""
    angles = start + np.arange(len(radii)) * (2 * np.pi / len(radii))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]


def _cross(arm: float) -> np.ndarray:
    quadrant = np.array([[1, -arm], [1, arm], [arm, arm]]) / np.hypot(1, arm)
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quadrant @ np.linalg.matrix_power(turn, k) for k in range(4)])


# Closed outlines within the unit circle, filled by the even-odd rule: a second outline is a hole.
SHAPES = {
    'circle': [_polar([1] * 64)],
    'square': [_polar([1] * 4, start=np.pi / 4)],
    'triangle': [_polar([1] * 3)],
    'star': [_polar([1, 0.42] * 5)],
    'ring': [_polar([1] * 64), _polar([0.58] * 64)],
    'cross': [_cross(0.3)],
}


def random_outline(
    rng: np.random.Generator, shape: str, size: tuple[float, float], hw: tuple[int, int]
) -> list[np.ndarray]:
    """Places a shape at a random position, size, tilt (up to 20 degrees) and aspect ratio.

    Args:
        rng: Random numbers.
        shape: A key of ``SHAPES``.
        size: Smallest and largest diameter of the circumscribed circle, in pixels; log-uniform.
        hw: Height and width of the image in pixels. The centre keeps 0.4 diameters from its edges,
            so that little of the shape lies outside.

    Returns:
        The outlines, (n, 2) arrays of (x, y) in pixels.
    """
    radius = np.exp(rng.uniform(*np.log(size))) / 2
    stretch = np.sqrt(rng.uniform(0.8, 1.25))
    angle = rng.uniform(-0.35, 0.35)
    height, width = hw
    margin = 0.8 * radius
    centre = [rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)]
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = radius * np.array([stretch, 1 / stretch])
    return [(outline * scale) @ rotation + centre for outline in SHAPES[shape]]


def clutter_outlines(
    rng: np.random.Generator, hw: tuple[int, int], lines: int, blobs: int
) -> list[np.ndarray]:
    """Thin straight bars and small ragged blobs, which belong to no class."""
    height, width = hw
    outlines = []
    for _ in range(lines):
        start, end = rng.uniform(0, [width, height], size=(2, 2))
        direction = (end - start) / max(np.linalg.norm(end - start), 1e-6)
        normal = np.array([-direction[1], direction[0]]) * rng.uniform(0.5, 1.5)
        outlines.append(np.stack([start - normal, start + normal, end + normal, end - normal]))
    for _ in range(blobs):
        radii = rng.uniform(3, 6) * rng.uniform(0.5, 1.5, size=rng.integers(5, 9))
        outlines.append(_polar(radii) + rng.uniform(0, [width, height]))
    return outlines


def coverage(outlines: Sequence[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    """The share of every pixel that lies inside the outlines.

    Args:
        outlines: (n, 2) arrays of (x, y) in pixels; pixel (0, 0) spans [0, 1) x [0, 1). Filled by
            the even-odd rule.
        hw: Height and width of the image in pixels.

    Returns:
        float32 (h, w) in [0, 1].
    """
    height, width = hw
    corners = np.concatenate(outlines)
    # Rasterise the bounding box only; most outlines are far smaller than the image.
    x0, y0 = np.clip(np.floor(corners.min(0)).astype(int), 0, [width, height])
    x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, [width, height])
    result = np.zeros(hw, np.float32)
    if x1 <= x0 or y1 <= y0:
        return result
    fine = np.zeros(((y1 - y0) * _SUPERSAMPLING, (x1 - x0) * _SUPERSAMPLING), np.uint8)
    # fillPoly has pixel centres at integers, outlines have pixel corners there.
    points = [
        np.round(((outline - [x0, y0]) * _SUPERSAMPLING - 0.5) * (1 << _SHIFT)).astype(np.int32)
        for outline in outlines
    ]
    cv2.fillPoly(fine, points, 255, lineType=cv2.LINE_8, shift=_SHIFT)
    box = cv2.resize(fine, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_AREA)
    result[y0:y1, x0:x1] = box / np.float32(255)
    return result


def drop_hidden(coverages: Sequence[np.ndarray], min_visible: float) -> list[int]:
    """Which of a stack of shapes, bottom to top, show at least ``min_visible`` of their pixels.

    A shape that does not is left out of the picture as well as of the labels, for its remaining
    corner would be an object without a label; what it covered is visible again.

    Args:
        coverages: (h, w) coverage of every shape, bottom first.
        min_visible: Share of the shape's pixels that has to be visible, in (0, 1].

    Returns:
        Indices of the shapes to paint, ascending. The topmost one is always among them.
    """
    kept = []
    covered = np.zeros(coverages[0].shape, bool)
    for index in reversed(range(len(coverages))):
        mask = coverages[index] >= 0.5
        if (mask & ~covered).sum() >= min_visible * mask.sum():
            kept.append(index)
            covered |= mask
    return kept[::-1]


# Patterns: float32 (h, w) in [0, 1], the share of the second colour.


def _turned_grid(
    rng: np.random.Generator, hw: tuple[int, int], tilt: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in pixels of axes turned by up to ``tilt`` radians, with a random origin."""
    angle = rng.uniform(-tilt, tilt)
    y, x = np.mgrid[: hw[0], : hw[1]].astype(np.float32)
    u = np.cos(angle) * x + np.sin(angle) * y + rng.uniform(0, 64)
    v = -np.sin(angle) * x + np.cos(angle) * y + rng.uniform(0, 64)
    return u.astype(np.float32), v.astype(np.float32)


def _plain(rng, hw):
    return np.zeros(hw, np.float32)


def _gradient(rng, hw):
    u, _ = _turned_grid(rng, hw, np.pi)
    return (u - u.min()) / (u.max() - u.min())


def _stripes(rng, hw):
    u, _ = _turned_grid(rng, hw, np.pi)
    return np.clip(0.5 + 1.5 * np.sin(u * (2 * np.pi / rng.uniform(6, 14))), 0, 1)


def _checker(rng, hw):
    u, v = _turned_grid(rng, hw, np.pi)
    cell = rng.uniform(5, 10)
    return ((np.floor(u / cell) + np.floor(v / cell)) % 2).astype(np.float32)


def _dots(rng, hw):
    u, v = _turned_grid(rng, hw, np.pi)
    cell = rng.uniform(7, 12)
    distance = np.hypot(u % cell - cell / 2, v % cell - cell / 2)
    return np.clip(0.3 * cell - distance + 0.5, 0, 1)


def _clouds(rng, hw):
    noise = rng.random((rng.integers(3, 7), rng.integers(3, 7)), dtype=np.float32)
    return np.clip(cv2.resize(noise, hw[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)


def _bricks(rng, hw):
    u, v = _turned_grid(rng, hw, 0.06)
    height = rng.uniform(7, 11)
    length = 2 * height
    row = np.floor(v / height)
    joint = np.minimum(v % height, (u + (row % 2) * height) % length)
    return np.clip(2 - joint, 0, 1)


def _waves(rng, hw):
    u, v = _turned_grid(rng, hw, 0.06)
    bend = rng.uniform(1.5, 3) * np.sin(u * (2 * np.pi / rng.uniform(18, 30)))
    return 0.5 + 0.5 * np.sin((v + bend) * (2 * np.pi / rng.uniform(6, 9)))


def _speckle(rng, hw):
    grains = rng.random(((hw[0] + 1) // 2, (hw[1] + 1) // 2), dtype=np.float32)
    return cv2.resize(grains, hw[::-1], interpolation=cv2.INTER_NEAREST)


_PATTERNS = {
    'plain': _plain,
    'gradient': _gradient,
    'stripes': _stripes,
    'checker': _checker,
    'dots': _dots,
    'clouds': _clouds,
    'bricks': _bricks,
    'waves': _waves,
    'speckle': _speckle,
}


# Colours and painting.


def random_colour(
    rng: np.random.Generator,
    span: tuple[float | Sequence[float], float | Sequence[float]] = (30, 225),
    avoid: Sequence[np.ndarray] = (),
    distance: float = 60,
) -> np.ndarray:
    """A random colour.

    Args:
        rng: Random numbers.
        span: Smallest and largest value of a channel, or of each of (B, G, R), in 0..255 units.
        avoid: Colours to stay away from, so that neighbours can be told apart.
        distance: Wanted Euclidean distance to all of them, in 0..255 units. If none of 32
            candidates has it, the farthest of them is taken.

    Returns:
        float32 (3,).
    """
    candidates = rng.uniform(*span, size=(32, 3)).astype(np.float32)
    if not len(avoid):
        return candidates[0]
    nearest = np.linalg.norm(candidates[:, None] - np.stack(avoid)[None], axis=2).min(axis=1)
    far_enough = nearest >= distance
    return candidates[np.argmax(far_enough) if far_enough.any() else np.argmax(nearest)]


def fill(
    rng: np.random.Generator,
    pattern: str,
    colour: np.ndarray,
    hw: tuple[int, int],
    contrast: tuple[float, float],
) -> np.ndarray:
    """A patterned picture around a colour.

    Args:
        rng: Random numbers.
        pattern: A key of ``_PATTERNS``.
        colour: float32 (3,), the first colour.
        hw: Height and width in pixels.
        contrast: Smallest and largest Euclidean distance between the pattern's two colours, in
            0..255 units.

    Returns:
        float32 (h, w, 3).
    """
    direction = rng.normal(size=3)
    direction *= rng.uniform(*contrast) / np.linalg.norm(direction)
    second = np.clip(colour + direction, 0, 255).astype(np.float32)
    share = _PATTERNS[pattern](rng, hw)
    return colour + share[..., None].astype(np.float32) * (second - colour)


def paint(
    picture: np.ndarray, labels: np.ndarray, cover: np.ndarray, colours: np.ndarray, label: int
) -> None:
    """Paints over ``picture`` and ``labels`` in place.

    Args:
        picture: float32 (h, w, 3).
        labels: integer (h, w).
        cover: float32 (h, w) in [0, 1], see ``coverage``.
        colours: float32 (h, w, 3) or (3,).
        label: Label of the pixels that are covered by half or more.
    """
    picture += cover[..., None] * (colours - picture)
    labels[cover >= 0.5] = label


def finish(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Adds sensor noise and converts to a uint8 image."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(2, 8))
    return np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)
