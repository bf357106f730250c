"""The gallery: where cases and methods stand, and how a map says that it is not to be believed."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.testing import assert_array_equal

from pipelines import gallery
from pipelines.figures import ScanPicture, full_colour, overlay, scale_lines
from pipelines.gallery import Cell, GalleryCase, cell_png, gallery_png, gallery_svg, legend_png
from pipelines.marks import COLOURS, FRAME, label_of, marked
from pipelines.pages import GalleryCell, GalleryColumn, GalleryRow, Table, gallery_page
from pipelines.svg_canvas import Surface, SvgCanvas
from tests.pipelines.test_pages import EVIL, PNG, Reader

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def suv() -> np.ndarray:
    return (np.random.default_rng(0).random((48, 48)) * 6).astype(np.float32)


@pytest.fixture
def cases(suv: np.ndarray) -> list[GalleryCase]:
    values = suv[:8, :8].copy()
    return [
        GalleryCase(
            name="first",
            scan=ScanPicture(suv=suv),
            cells={"fine": Cell(values=values, signed=False, word="sound", note="AP 0.3")},
        ),
        GalleryCase(
            name="second <&>",
            scan=ScanPicture(suv=suv, mask=suv > 5),
            cells={
                "coarse": Cell(values=values, signed=False, word="refused"),
                "gradient": Cell(values=values - 3, signed=True),
            },
        ),
    ]


def texts(svg: bytes) -> dict[str, tuple[int, int]]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}text")
    return {str(item.text): (int(item.get("x", 0)), int(item.get("y", 0))) for item in found}


def pixels(png: bytes) -> np.ndarray:
    return np.rint(255 * imread(io.BytesIO(png))[..., :3]).astype(np.uint8)


class TestLayout:
    def test_one_row_per_case_and_one_column_per_map(self, cases: list[GalleryCase]) -> None:
        found = texts(gallery_svg(cases))
        columns = [found[name][0] for name in ("scan", "fine", "coarse", "gradient")]
        assert columns == sorted(set(columns))
        assert found["first"][1] < found["second <&>"][1]
        assert {"sound", "REFUSED", "not checked", "AP 0.3", "full", "± full"} <= set(found)
        assert {"SUV", "true region", "–"} <= set(found)

    def test_svg_holds_the_pictures_of_the_page(self, cases: list[GalleryCase]) -> None:
        root = ElementTree.fromstring(gallery_svg(cases))
        images = [item.get("href", "") for item in root.iter(f"{SVG}image")]
        drawn = [base64.b64decode(text.partition(",")[2]) for text in images]
        first = pixels(drawn[1])
        assert_array_equal(first, pixels(cell_png(cases[0], "fine"))[1:-1, 1:-1])
        assert not any(text.startswith("http") for text in images)

    def test_png_and_svg_are_of_one_size_and_repeatable(self, cases: list[GalleryCase]) -> None:
        png, svg = gallery_png(cases), gallery_svg(cases)
        root = ElementTree.fromstring(svg)
        assert pixels(png).shape[:2] == (int(root.get("height", 0)), int(root.get("width", 0)))
        assert (png, svg) == (gallery_png(cases), gallery_svg(cases))

    def test_many_maps_go_on_below(self, suv: np.ndarray) -> None:
        names = [f"map{i}" for i in range(gallery.BESIDE + 1)]
        cell = Cell(values=suv[:8, :8].copy(), signed=False)
        case = GalleryCase(
            name="one", scan=ScanPicture(suv=suv), cells=dict.fromkeys(names, cell), unit=""
        )
        found = texts(gallery_svg([case]))
        assert found[names[-1]][0] == found[names[0]][0]
        assert found[names[-1]][1] > found[names[0]][1] + gallery.PICTURE
        assert "SUV" not in found

    def test_only_the_bars_that_are_needed(self, cases: list[GalleryCase]) -> None:
        narrow, wide = (pixels(legend_png(found)).shape[1] for found in (cases[:1], cases))
        assert (narrow, wide) == (2 * gallery.LEGEND, 4 * gallery.LEGEND)

    def test_a_surface_is_a_surface(self) -> None:
        assert isinstance(SvgCanvas(4, 4), Surface)

    @pytest.mark.parametrize("draw", [gallery_png, gallery_svg, legend_png])
    def test_no_case_is_refused(self, draw: object) -> None:
        with pytest.raises(ValueError, match="no case to draw"):
            draw([])  # type: ignore[operator]

    def test_a_map_that_is_not_there(self, cases: list[GalleryCase]) -> None:
        with pytest.raises(KeyError, match="coarse"):
            cell_png(cases[0], "coarse")


class TestMarks:
    def test_what_may_be_believed_is_left_as_it_is(self) -> None:
        picture = np.zeros((40, 30, 3), np.uint8)
        for word in ("sound", ""):
            assert_array_equal(marked(picture, word), picture)

    def test_a_doubtful_picture_is_framed_and_a_refused_one_struck_through(self) -> None:
        picture = np.zeros((60, 80, 3), np.uint8)
        doubtful, refused = marked(picture, "doubtful"), marked(picture, "refused")
        assert (doubtful[0, 5] == COLOURS["doubtful"]).all()
        assert not doubtful[FRAME:-FRAME, FRAME:-FRAME].any()
        for place in ((30, 40), (15, 20), (15, 60)):
            assert (refused[place] == COLOURS["refused"]).all()
        assert not refused[30, 15].any()
        assert not picture.any()

    def test_the_words(self) -> None:
        assert [label_of(word) for word in ("sound", "doubtful", "refused", "")] == [
            "sound", "doubtful", "REFUSED", "not checked",
        ]  # fmt: skip

    def test_an_overlay_is_marked_too(self, suv: np.ndarray) -> None:
        values = suv[:8, :8].copy()
        plain, struck = overlay(suv, values, word="sound"), overlay(suv, values, word="refused")
        assert pixels(plain).shape == pixels(struck).shape
        red = (pixels(struck) == COLOURS["refused"]).all(-1).sum()
        assert red > 5000 > (pixels(plain) == COLOURS["refused"]).all(-1).sum()


class TestFineMaps:
    """Specks of single pixels would leave everything else without colour."""

    def test_full_colour_begins_at_the_99th_percentile(self) -> None:
        values = np.zeros((100, 100), np.float32)
        values[0, 0], values[1] = -50.0, np.linspace(0.01, 1, 100)
        assert full_colour(values, signed=True) == pytest.approx(1.0, abs=0.02)
        assert scale_lines(values, signed=True) == ("peak ±50", "full colour ±1")

    def test_coarse_maps_are_scaled_to_their_peak(self) -> None:
        values = np.zeros((64, 64), np.float32)
        values[0, 0] = 50.0
        assert full_colour(values, signed=False) == 50
        assert scale_lines(values, signed=False) == ("peak 4.1e+03 × mean",)

    def test_a_map_of_nothing(self) -> None:
        assert scale_lines(np.zeros((100, 100), np.float32), signed=True) == ("zero everywhere",)


class TestPage:
    def page(self, name: str = "k7m2") -> str:
        cell = GalleryCell(image=PNG, word="refused", lines=("peak ±3", ""))
        return gallery_page(
            "Cases",
            columns=[
                GalleryColumn(name="lrp", signed=True, check="doubtful"),
                GalleryColumn(name="cam", signed=False),
            ],
            rows=[GalleryRow(name=name, scan=PNG, cells={"lrp": cell})],
            legend=PNG,
            intro=["Intro."],
            tables=[Table(heading="Verdicts", rows=[{"map": "lrp"}]), Table(heading="No", rows=[])],
        )

    def test_cells_say_their_verdict(self) -> None:
        reader = Reader(self.page())
        for word in ("Cases", "Intro.", "lrp", "check: doubtful", "REFUSED", "peak ±3", "Verdicts"):
            assert word in reader.text
        assert "No" not in reader.words
        assert [image["alt"] for image in reader.all("img")][1:] == [
            "scan, k7m2", "lrp, k7m2: REFUSED",
        ]  # fmt: skip

    def test_it_is_one_file_without_script(self) -> None:
        page = self.page(EVIL)
        reader = Reader(page)
        assert not reader.all("script")
        assert EVIL in reader.text
        assert not re.search(r"(src|href)=\"(?!data:)", page)
