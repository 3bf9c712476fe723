"""Pictures: lines where the outlines are, nothing elsewhere, the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from shapely.geometry import Polygon, box

from geoinfer import view
from geoinfer.errors import ConfigError, OutputError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # reading a PNG back

FRAME = Affine(0.5, 0, 1000, 0, -0.5, 2000)
GREY = np.full((3, 64, 80), 128, np.uint8)


def pixel_box(left: float, top: float, right: float, bottom: float) -> Polygon:
    """A rectangle in pixels of the image, as a polygon on the ground."""
    return shapely.transform(box(left, top, right, bottom), lambda xy: xy * [FRAME.a, FRAME.e] + [FRAME.c, FRAME.f])


def test_lines_lie_on_the_outline_and_leave_the_rest_alone() -> None:
    picture = view.overlay(GREY, [pixel_box(20, 10, 50, 40)], FRAME, ["found"], width=2, fill=0)
    colour = view.COLOURS["found"]
    assert tuple(picture[:, 10, 30]) == colour
    assert tuple(picture[:, 25, 20]) == colour
    assert (picture[:, 25, 35] == 128).all()
    assert (picture[:, 55, 70] == 128).all()


def test_a_filled_shape_takes_its_share_of_the_colour() -> None:
    picture = view.overlay(GREY, [pixel_box(20, 10, 50, 40)], FRAME, ["fp"], fill=0.5)
    assert picture[:, 25, 35] == pytest.approx((128 + np.array(view.COLOURS["fp"])) / 2, abs=1)


def test_a_hole_is_outlined_and_not_filled() -> None:
    ring = pixel_box(10, 10, 60, 50).difference(pixel_box(25, 20, 45, 40))
    picture = view.overlay(GREY, [ring], FRAME, ["tp"], width=2, fill=0.5)
    assert (picture[:, 30, 35] == 128).all()
    assert tuple(picture[:, 30, 25]) == view.COLOURS["tp"]


def test_bands_of_rows_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [pixel_box(5.3, 3.2, 60.7, 57.1), pixel_box(30, 20, 75, 63)]
    whole = view.overlay(GREY, shapes, FRAME, ["tp", "fn"])
    monkeypatch.setattr(view, "BAND", 7)
    assert (view.overlay(GREY, shapes, FRAME, ["tp", "fn"]) == whole).all()


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    shapes = [pixel_box(20, 10, 50, 40), Polygon()]
    for name in ("a.png", "b.png"):
        view.draw(GREY, shapes, FRAME, tmp_path / name, scale_m=0.5)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with rasterio.open(tmp_path / "a.png") as file:
        assert (file.count, file.height, file.width) == (3, 64, 80)


def test_the_scale_bar_is_as_long_as_it_says(tmp_path: Path) -> None:
    black = np.zeros((1, 200, 400), np.uint8)
    view.draw(black, [], FRAME, tmp_path / "bar.png", scale_m=0.5)
    with rasterio.open(tmp_path / "bar.png") as file:
        picture = file.read()
    white = (picture == 255).all(axis=0)
    assert white.sum(axis=1).max() == 100  # 50 m of the 200 m across


def test_bad_input_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rows, cols"):
        view.draw(GREY[0], [], FRAME, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="2 kinds for 1 geometries"):
        view.draw(GREY, [pixel_box(1, 1, 2, 2)], FRAME, tmp_path / "a.png", kinds=["tp", "fp"])
    with pytest.raises(ConfigError, match="'odd' is unknown"):
        view.draw(GREY, [pixel_box(1, 1, 2, 2)], FRAME, tmp_path / "a.png", kinds=["odd"])
    with pytest.raises(OutputError, match="cannot write the picture"):
        view.draw(GREY, [], FRAME, tmp_path / "missing" / "a.png")
