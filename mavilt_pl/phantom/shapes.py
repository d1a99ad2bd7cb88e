"""Smooth shapes on a grid of coordinates: edges, blobs and tubes.

x is [1,W] or [H,W], y is [H,1] or [H,W]; points are pairs (x, y).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Points = Sequence[tuple[float, float]]


def smooth_step(value: Array, width: float | Array) -> Array:
    """0 below zero, 1 above, with a smooth edge.

    Args:
        value: signed distance to the edge.
        width: of the edge, in the same units.

    >>> smooth_step(np.array([-1.0, 0.0, 1.0]), 0.1).tolist()
    [0.0, 0.5, 1.0]
    """
    # The cubic 3t² − 2t³ has slope 1.5 in its middle, and 0.75 · 1.5 is about 1 over the width.
    t = np.clip(value * (0.75 / width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def bump(distance: Array, power: int = 2) -> Array:
    """1 at distance 0, 1/e at distance 1: Gaussian for the power 2, flatter on top for more.

    >>> bump(np.array([0.0, 1.0])).round(3).tolist()
    [1.0, 0.368]
    """
    return np.exp(-(distance**power))


def half_chord(square: Array) -> Array:
    """How far a ray runs through a round body, 1 in its middle and 0 outside.

    Args:
        square: squared distance from the middle, over the radius squared. A higher power in place
            of the square gives a body with flatter sides.

    >>> half_chord(np.array([0.0, 0.36, 4.0])).tolist()
    [1.0, 0.8, 0.0]
    """
    # Clipped below: rays that miss the body would give the root of a negative number.
    return np.sqrt(np.clip(1 - square, 0, 1))


def blob(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float) -> Array:
    """A Gaussian spot of height 1; it falls to 1/e at the radii.

    Args:
        x: coordinates.
        y: coordinates.
        cx: of the centre.
        cy: of the centre.
        rx: radius along x.
        ry: radius along y.
    """
    return bump((x - cx) / rx) * bump((y - cy) / ry)


def squared_distance(x: Array, y: Array, points: Points) -> Array:
    """Squared distance to a polyline, [H,W]."""
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, dtype=np.float32)
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        dx, dy = bx - ax, by - ay
        # Where along the piece the nearest point is, 0 to 1.
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2)
    return nearest


def tube(x: Array, y: Array, points: Points, width: float) -> Array:
    """A soft tube of height 1 along a polyline; it falls to 1/e at `width` from its axis."""
    return np.exp(-squared_distance(x, y, points) / width**2)


def smooth_curve(points: Points, pieces: int = 4) -> list[tuple[float, float]]:
    """A polyline through the same points with round bends (Catmull–Rom).

    Args:
        points: at least two.
        pieces: number of straight pieces between two points.
    """
    # The ends are doubled, so that the curve starts and ends at them.
    p = np.asarray([points[0], *points, points[-1]], dtype=float)
    t = np.arange(pieces)[:, None] / pieces
    bends = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:]):
        # Each bend leaves a point in the direction of its two neighbours.
        square = (2 * a - 5 * b + 4 * c - d) * t**2
        cube = (3 * b - a - 3 * c + d) * t**3
        bends.append(0.5 * (2 * b + (c - a) * t + square + cube))
    return [(float(x), float(y)) for x, y in np.concatenate([*bends, p[-1:]])]


def convex_polygon(x: Array, y: Array, corners: Points, width: float) -> Array:
    """A convex polygon of height 1 with soft edges.

    Args:
        x: coordinates.
        y: coordinates.
        corners: clockwise on the image.
        width: of the edges.
    """
    # A product of half planes, each with a soft edge.
    out = np.ones(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]]):
        length = float(np.hypot(bx - ax, by - ay))
        # The cross product over the side's length is the signed distance to it.
        inwards = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / length
        out = out * smooth_step(inwards, width)
    return out
