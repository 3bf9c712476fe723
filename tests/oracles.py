"""Slow and obvious versions of what the package computes fast. No loop here knows how the kernels do it."""

from __future__ import annotations

import numpy as np
import rasterio.features
import scipy.ndimage
import shapely
from hypothesis import strategies as st
from pyproj import CRS

from geoinfer.grid import Window
from geoinfer.vector.polygons import Polygons

CROSS = scipy.ndimage.generate_binary_structure(2, 1)


def outlines(mask: np.ndarray) -> np.ndarray:
    """GDAL's polygons of a mask, 4-connected."""
    shapes = rasterio.features.shapes(mask.astype(np.uint8), mask=mask.astype(bool), connectivity=4)
    return np.array([shapely.geometry.shape(shape) for shape, _ in shapes] + [None], object)[:-1]


def as_set(geometries: np.ndarray) -> list[bytes]:
    """The polygons whatever their order, start vertices and orientations; with multiplicity."""
    return sorted(shapely.to_wkb(shapely.normalize(geometries)).tolist()) if len(geometries) else []


def components(mask: np.ndarray, prob: np.ndarray, valid: np.ndarray, *, closed: bool = True) -> list[tuple[int, ...]]:
    """First row, first col, pixels, prob_sum, truncated of each component, in the order of first pixels.

    Outside the mask nobody looked if `closed`.
    """
    label, count = scipy.ndimage.label(mask & valid, CROSS)
    unknown = np.pad(~valid, 1, constant_values=closed)
    found = []
    for number in range(1, count + 1):
        is_inside = label == number
        row, col = np.argwhere(is_inside)[0]
        around = scipy.ndimage.binary_dilation(np.pad(is_inside, 1), CROSS)
        total = int(prob[is_inside].astype(np.int64).sum())
        found.append((int(row), int(col), int(is_inside.sum()), total, int((around & unknown).any())))
    return sorted(found)


def words(mask: np.ndarray) -> np.ndarray:
    """(H, ceil(W / 32)) uint32, bit by bit: pixel i of 32 is worth 2 to the power i."""
    height, width = mask.shape
    padded = np.zeros((height, -(-width // 32) * 32), np.int64)
    padded[:, :width] = mask != 0
    return (padded.reshape(height, -1, 32) << np.arange(32)).sum(axis=2).astype(np.uint32)


def crossings(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each row changes, row after row, and where each row begins among these."""
    changes = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1) != 0
    return np.nonzero(changes)[1], np.concatenate([[0], np.cumsum(changes.sum(axis=1))])


def columns(polygons: Polygons) -> list[tuple[int, ...]]:
    """The same tuples from polygons."""
    table = (*polygons.first.T, polygons.pixels, polygons.prob_sum, polygons.truncated)
    return [tuple(int(value) for value in row) for row in zip(*table, strict=True)]


def bytes_of(polygons: Polygons) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Everything about polygons that could differ."""
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in polygons.to_arrays().items()}


def is_drawn_back(polygons: Polygons, mask: np.ndarray) -> bool:
    """Rasterizing the polygons gives the mask again."""
    geometries = polygons.to_shapely()
    drawn = rasterio.features.rasterize(geometries, out_shape=mask.shape) if len(geometries) else np.zeros(mask.shape)
    return bool(np.array_equal(drawn.astype(bool), mask.astype(bool)))


def geodesic_areas(geometries: np.ndarray, crs: CRS) -> np.ndarray:
    """Areas on the ellipsoid by pyproj.Geod, square metres; right to about 1e-5 m2."""
    import geopandas as gpd

    degrees = np.degrees(crs.geodetic_crs.axis_info[0].unit_conversion_factor)
    geodetic = gpd.GeoSeries(geometries, crs=crs).to_crs(crs.geodetic_crs).scale(degrees, degrees, origin=(0, 0))
    return np.array([abs(crs.get_geod().geometry_area_perimeter(geometry)[0]) for geometry in geodetic])


@st.composite
def masks(draw: st.DrawFn, most: int = 32) -> np.ndarray:
    """Random bool masks of all densities, some of them with large smooth parts, across the borders of 32-bit words."""
    height, width = draw(st.integers(1, most)), draw(st.integers(1, 3 * most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95, 1.0]))
    coarse = draw(st.integers(1, 6))
    cells = random.random((-(-height // coarse), -(-width // coarse))) < density
    mask = np.kron(cells, np.ones((coarse, coarse), bool))[:height, :width]
    return mask ^ (random.random(mask.shape) < draw(st.sampled_from([0.0, 0.02, 0.2])))


@st.composite
def partitions(draw: st.DrawFn, height: int, width: int) -> list[Window]:
    """The rows and columns from 0 cut into rectangles at random, guillotine fashion, in random order."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stop = draw(st.sampled_from([0.02, 0.1, 0.3]))
    todo, done = [Window(0, 0, height, width)], []
    while todo:
        w = todo.pop()
        if max(w.height, w.width) < 2 or random.random() < stop:
            done.append(w)
        elif w.width < 2 or (w.height > 1 and random.random() < 0.5):
            cut = int(random.integers(1, w.height))
            todo += [Window(w.row, w.col, cut, w.width), Window(w.row + cut, w.col, w.height - cut, w.width)]
        else:
            cut = int(random.integers(1, w.width))
            todo += [Window(w.row, w.col, w.height, cut), Window(w.row, w.col + cut, w.height, w.width - cut)]
    return [done[i] for i in random.permutation(len(done))]


def crop(array: np.ndarray, w: Window) -> np.ndarray:
    """The pixels of a window, rows and columns last."""
    return array[..., w.row : w.stop_row, w.col : w.stop_col]


def covered_share(shapes: np.ndarray, features: list[shapely.Polygon]) -> np.ndarray:
    """Share of each shape's area within the union of features, by one union of everything."""
    union = shapely.union_all(features)
    return np.array([shape.intersection(union).area / shape.area for shape in shapes])


def masked(shapes: np.ndarray, layers: list[tuple[str, float, list[shapely.Polygon]]]) -> list[tuple[int, float]]:
    """Of each shape, the first layer (action, max_cover, features; no clip) that rejects it, or -1, and that one's share."""
    fates = []
    for shape in shapes:
        fate = (-1, np.nan)
        for number, (action, most, features) in enumerate(layers):
            share = float(covered_share(np.array([shape]), features)[0])
            if (action == "keep" and share <= most) or (action in ("drop", "skip") and share > most):
                fate = (number, share)
                break
        fates.append(fate)
    return fates


def resampled(
    pixels: np.ndarray, valid: np.ndarray, rows: np.ndarray, cols: np.ndarray, method: str, ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(C, h, w) -> (C, *shape) float means and the validity at positions in pixels, by the definitions of the kernels.

    `method` is bilinear, cubic (Keys, a = -1/2) or average (the area of a rectangle of `ratio` pixels); `ratio` widens them.
    """

    def weight(distance: np.ndarray, width: float) -> np.ndarray:
        d = np.abs(distance) / width
        if method == "bilinear":
            return (1 - d).clip(0)
        if method == "cubic":
            return np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, np.where(d < 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0))
        d = np.abs(distance)
        return (np.minimum(d + 0.5, width / 2) - np.maximum(d - 0.5, -width / 2)).clip(0)

    height, width = valid.shape
    reach = int(np.ceil(2 * max(*ratio, 1))) + 1
    total, mass = np.zeros((len(pixels), *rows.shape)), np.zeros(rows.shape)
    for a in range(-reach, reach + 1):
        for b in range(-reach, reach + 1):
            i, j = np.floor(rows).astype(int) + a, np.floor(cols).astype(int) + b
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            i, j = i.clip(0, height - 1), j.clip(0, width - 1)
            share = weight(i + 0.5 - rows, ratio[0]) * weight(j + 0.5 - cols, ratio[1]) * (inside & valid[i, j])
            total, mass = total + share * pixels[:, i, j], mass + share
    i, j = np.floor(rows).astype(int), np.floor(cols).astype(int)
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    known = inside & valid[i.clip(0, height - 1), j.clip(0, width - 1)]
    return (total / np.where(mass > 0, mass, 1)).clip(0, 255), known
