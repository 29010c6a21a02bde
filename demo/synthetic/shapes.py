"""Signed distances to the outlines of the shapes."""

import math

import numpy as np

# Names of the shapes, with their plurals.
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "ring": "rings",
    "cross": "crosses",
    "heart": "hearts",
    "moon": "moons",
}
SHAPES = tuple(PLURALS)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Exact distance to a closed polygon: the nearest edge, with the sign from the crossing number."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        edge_x, edge_y = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * edge_x + py * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        nearest = np.minimum(nearest, (px - along * edge_x) ** 2 + (py - along * edge_y) ** 2)
        if ay != by:  # a horizontal ray never crosses a horizontal edge
            inside ^= ((y < ay) != (y < by)) & (px < py * (edge_x / edge_y))
    return np.where(inside, -1, 1).astype(x.dtype) * np.sqrt(nearest)


def _regular_corners(num_corners: int, inner_radius: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star if `inner_radius` is given; the first one points up."""
    radii = [1.0] if inner_radius is None else [1.0, inner_radius]
    count = num_corners * len(radii)
    angles = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _heart_corners(num_corners: int = 20) -> list[tuple[float, float]]:
    angles = [2 * math.pi * (i + 0.5) / num_corners for i in range(num_corners)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16 - 0.1,
        )
        for a in angles
    ]


_TRIANGLE, _STAR, _HEART = _regular_corners(3), _regular_corners(5, inner_radius=0.42), _heart_corners()


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of points `(x, y)`, in units of the object's radius, to the outline of `shape`.

    Raises `ValueError` for an unknown shape.
    """
    if shape == "circle":
        return np.hypot(x, y) - 0.92
    if shape == "square":
        return _box(x, y, 0.8, 0.8)
    if shape == "triangle":
        return _polygon(x, y - 0.2, _TRIANGLE)  # shifted down, so that its middle is nearer to the origin
    if shape == "star":
        return _polygon(x, y, _STAR)
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72) - 0.22
    if shape == "cross":
        return np.minimum(_box(x, y, 0.98, 0.33), _box(x, y, 0.33, 0.98))
    if shape == "heart":
        return _polygon(x, y, _HEART)
    if shape == "moon":
        return np.maximum(np.hypot(x, y) - 0.98, 0.82 - np.hypot(x - 0.55, y))
    raise ValueError(f"Unknown shape '{shape}': choose one of {', '.join(SHAPES)}.")


__all__ = ["PLURALS", "SHAPES", "signed_distance"]
