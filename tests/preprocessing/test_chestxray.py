import io
import pickle
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing import chestxray
from preprocessing.chestxray import CLASSES, MOST_BOXES, Options, Sources, scaled_boxes
from preprocessing.chestxray_tables import (
    Box,
    finding_index,
    official_parts,
    patient_of,
    read_boxes,
    read_entries,
    read_list,
)
from preprocessing.errors import FileError, LabelError, PreprocessingError, SplitError
from preprocessing.official_split import split_officially
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.radiographs import read_grey, resized
from preprocessing.records import Discovery, Example

PSEUDONYMS = Pseudonyms(bytes(range(32)))
HEAD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEAD = "Image Index,Finding Label,Bbox [x,y,w,h]"
SIDE = 64


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def grey(seed: int = 0, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape).astype(np.uint8)


def row(
    name: str, labels: str = "Mass", patient: str | None = None, age: str = "58", tail: str = ""
) -> str:
    who = patient if patient is not None else str(int(name[:8]))
    return f"{name},{labels},0,{who},{age},M,PA,2682,2749,0.143,0.143{tail}"


def release(
    folder: Path,
    images: dict[str, bytes],
    rows: list[str],
    *,
    boxes: list[str] | None = None,
    lists: dict[str, list[str]] | None = None,
    end: str = "\n",
) -> Path:
    (folder / "images").mkdir(parents=True)
    for name, content in images.items():
        (folder / "images" / name).write_bytes(content)
    (folder / "Data_Entry_2017_v2020.csv").write_text(end.join([HEAD, *rows, ""]), newline="")
    if boxes is not None:
        text = end.join([f"{BOX_HEAD},,,", *boxes, ""])
        (folder / "BBox_List_2017.csv").write_text(text, newline="")
    for name, names in (lists or {}).items():
        (folder / name).write_text("\n".join(names))
    return folder


def find(folder: Path) -> Discovery:
    return chestxray.discover(Sources(root=folder), Options(), pseudonyms=PSEUDONYMS)


def codes(found: Discovery) -> Counter[str]:
    return Counter(item.code for item in found.exclusions)


def is_accounted(found: Discovery) -> bool:
    used, refused = len(found.cases), sum(item.files for item in found.exclusions)
    return found.seen == used + refused + sum(found.skipped.values())


def derived(folder: Path, size: int = 32) -> list[Example]:
    return [
        example
        for case in find(folder).cases
        for example in chestxray.derive(case, Options(image_size=size)).examples  # type: ignore[arg-type]
    ]


class TestRelease:
    """The images, tables and lists that the NIH released."""

    @pytest.fixture
    def root(self, reference_data: Path) -> Path:
        return reference_data / "chestxray14"

    def test_every_image_is_a_case_and_every_box_without_image_is_told(self, root: Path) -> None:
        found = find(root)
        assert len(found.cases) == 25
        assert is_accounted(found)
        assert codes(found) == {"CXR_BOX_NO_IMAGE": 879}
        assert found.skipped == {"TABLE": 3}

    def test_test_patients_are_those_that_the_official_list_leaves_out(self, root: Path) -> None:
        rows = [example.provenance for example in derived(root)]
        tests = [str(item["findings"]) for item in rows if item["official_split"] == "test"]
        assert len(tests) == 9
        assert sum("Hernia" in findings for findings in tests) == 8

    def test_findings_are_those_of_the_table(self, root: Path) -> None:
        shown = Counter(str(example.provenance["findings"]) for example in derived(root))
        assert shown["No Finding"] == 9
        assert shown["Mass|Nodule"] == 1
        for example in derived(root):
            names = [name for name in CLASSES if example.arrays["labels"][CLASSES.index(name)]]
            assert "|".join(names) == str(example.provenance["findings"]).replace("No Finding", "")
            assert example.label == (CLASSES.index(names[0]) if len(names) == 1 else -1)

    def test_the_rgba_image_is_read_as_the_others(self, root: Path) -> None:
        pixels, mode = read_grey(root / "images" / "00000004_000.png")
        assert mode == "rgba"
        with Image.open(root / "images" / "00000004_000.png") as image:
            assert np.array_equal(pixels, np.array(image)[..., 0])

    @pytest.mark.parametrize("size", [224, 256, 512, 1024])
    def test_the_box_lies_on_its_own_pixels(self, root: Path, tmp_path: Path, size: int) -> None:
        """White out the boxed pixels of the original: the stored box must frame the white."""
        shutil.copytree(root, tmp_path / "copy")
        path = tmp_path / "copy" / "images" / "00001153_004.png"
        path.chmod(0o644)
        path.parent.chmod(0o755)
        pixels, _ = read_grey(path)
        pixels = pixels // 2
        pixels[254:693, 307:405] = 255  # 307.03, 253.91, 97.85, 439.18
        path.write_bytes(png(pixels))
        example = next(e for e in derived(tmp_path / "copy", size) if e.provenance["boxes"])
        box = example.arrays["boxes"][0]
        assert CLASSES[int(box[0])] == "Atelectasis"
        white = example.arrays["image"][0] > 190
        rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
        frame = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        expected = (box[1], box[2], box[1] + box[3], box[2] + box[4])
        assert np.abs(np.subtract(frame, expected)).max() <= 1.0
        np.testing.assert_allclose(
            box[1:], np.array([307.029, 253.914, 97.849, 439.182]) * size / 1024, rtol=1e-4
        )

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text,
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text.replace("\n", "\n\n") + "\n\n",
            lambda text: text.replace("\n", ",,,\n"),
            lambda text: text.replace(",,,", "", 1),
            lambda text: text.replace("Bbox [x,y,w,h]", '"Bbox [x,y,w,h]"'),
            lambda text: text.replace("Bbox [x,y,w,h],,,", "x,y,w,h"),
            lambda text: "\ufeff" + text,
            lambda text: text.replace(",", ";"),
            lambda text: text.replace(",", "\t"),
            lambda text: "".join(
                f"{'' if number == 0 else number},{line}\n"
                for number, line in enumerate(text.splitlines())
            ),
            lambda text: text.replace("Infiltrate", "Infiltration").replace(",,,\n", ",,,,\n"),
            lambda text: text.replace(".png,", ".png , ").replace(",\n", ",   ,\n"),
        ],
    )
    def test_all_boxes_parse_from_every_form(
        self, root: Path, tmp_path: Path, change: object
    ) -> None:
        text = (root / "BBox_List_2017.csv").read_text()
        path = tmp_path / "BBox_List_2017.csv"
        path.write_text(change(text), encoding="utf-8", newline="")  # type: ignore[operator]
        boxes, faults = read_boxes(path)
        assert faults == ()
        assert boxes == read_boxes(root / "BBox_List_2017.csv")[0]
        assert len(boxes) == 984
        counts = Counter(CLASSES[box.finding] for box in boxes)
        assert [counts[name] for name in CLASSES[:8]] == [180, 146, 153, 123, 85, 79, 120, 98]
        assert len({box.image for box in boxes}) == 880

    def test_the_form_of_2017_says_the_same(self, root: Path, tmp_path: Path) -> None:
        new = root / "Data_Entry_2017_v2020.csv"
        lines = new.read_text().splitlines()
        old = [f"{lines[0]},"]
        for line in lines[1:]:
            cells = line.split(",")
            cells[4] = f"{int(cells[4]):03d}Y"
            old.append(",".join([*cells, ""]))
        path = tmp_path / "Data_Entry_2017.csv"
        path.write_text("\r\n".join(old) + "\r\n\r\n", newline="")
        assert read_entries(path) == read_entries(new)
        assert len(read_entries(path)[0]) == 25


class TestDerive:
    def test_labels_boxes_and_scale(self, tmp_path: Path) -> None:
        name = "00000007_001.png"
        boxes = [f"{name},Mass,256,512,128,64,,,", f"{name},Infiltrate,0,0,1024,1024,,,"]
        rows = [row(name, "Mass|Infiltration")]
        (example,) = derived(release(tmp_path / "r", {name: png(grey())}, rows, boxes=boxes))
        assert np.flatnonzero(example.arrays["labels"]).tolist() == [3, 4]
        assert example.label == -1
        expected = [[4, 8, 16, 4, 2], [3, 0, 0, 32, 32]]
        np.testing.assert_array_equal(example.arrays["boxes"][:2], expected)
        assert (example.arrays["boxes"][2:, 0] == -1).all()
        assert np.isnan(example.arrays["boxes"][2:, 1:]).all()
        assert example.provenance["scale"] == 0.5
        assert example.provenance["spacing_y_mm"] == pytest.approx(0.143 * 2749 / 32, abs=1e-4)
        assert example.provenance["spacing_x_mm"] == pytest.approx(0.143 * 2682 / 32, abs=1e-4)
        assert example.provenance["warnings"] == ""

    def test_the_layout_holds_what_is_derived(self, tmp_path: Path) -> None:
        name = "00000007_001.png"
        (example,) = derived(release(tmp_path / "r", {name: png(grey())}, [row(name)]))
        fields = chestxray.layout(image_size=32)
        assert fields.keys() == example.arrays.keys()
        for key, spec in fields.items():
            assert (example.arrays[key].shape, example.arrays[key].dtype) == (
                spec.shape,
                spec.dtype,
            )

    @pytest.mark.parametrize("mode", ["RGBA", "RGB", "LA", "P"])
    def test_colours_that_are_equal_are_grey(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / "x.png"
        path.write_bytes(png(grey(), mode))
        pixels, stored = read_grey(path)
        assert np.array_equal(pixels, grey())
        assert stored == ("palette" if mode == "P" else mode.lower())

    def test_a_box_that_the_labels_lack_is_kept_with_a_warning(self, tmp_path: Path) -> None:
        name = "00000007_001.png"
        folder = release(
            tmp_path / "r", {name: png(grey())}, [row(name)], boxes=[f"{name},Nodule,1,2,3,4"]
        )
        (example,) = derived(folder)
        assert example.provenance["boxes"] == 1
        assert str(example.provenance["warnings"]).startswith("BOX_WITHOUT_LABEL: a box shows Nod")

    @pytest.mark.parametrize(
        ("age", "told"),
        [("058Y", 58), ("58", 58), ("013M", 1), ("030D", 0), ("095", 90), ("411Y", ""), ("", "")],
    )
    def test_ages_of_both_forms(self, tmp_path: Path, age: str, told: int | str) -> None:
        name = "00000007_001.png"
        folder = release(tmp_path / "r", {name: png(grey())}, [row(name, age=age)])
        (example,) = derived(folder)
        assert example.provenance["age_years"] == told
        assert ("AGE" in str(example.provenance["warnings"])) == (told == "")

    def test_no_name_or_number_of_a_patient_is_in_the_output(self, tmp_path: Path) -> None:
        name = "00013579_001.png"
        folder = release(tmp_path / "r", {name: png(grey())}, [row(name)])
        (example,) = derived(folder)
        (case,) = find(folder).cases
        told = f"{example.sample_id} {example.subject_id} {example.provenance} {case!r}"
        assert "13579" not in told
        assert example.subject_id == PSEUDONYMS.patient("13579")

    def test_resizing_keeps_places_and_constants(self) -> None:
        assert (resized(np.full((64, 64), 7, dtype=np.uint8), 24) == 7).all()
        pixels = np.zeros((64, 64), dtype=np.uint8)
        pixels[16:32, 32:48] = 255
        small = resized(pixels, 16) > 127
        assert np.argwhere(small).min(axis=0).tolist() == [4, 8]
        assert np.argwhere(small).max(axis=0).tolist() == [7, 11]
        assert resized(pixels, 64) is pixels

    @given(
        place=st.tuples(st.floats(0, 900), st.floats(0, 900), st.floats(1, 124), st.floats(1, 124)),
        size=st.integers(32, 2048),
    )
    def test_boxes_scale_as_the_picture_does(
        self, place: tuple[float, float, float, float], size: int
    ) -> None:
        x, y, width, height = place
        box = Box(image="i", finding=2, x=x, y=y, width=width, height=height)
        stored = scaled_boxes([box], size)[0]
        np.testing.assert_allclose(stored[1:] * 1024 / size, place, rtol=1e-5, atol=1e-4)

    def test_too_many_boxes_are_refused(self) -> None:
        box = Box(image="i", finding=2, x=0.0, y=0.0, width=1.0, height=1.0)
        with pytest.raises(LabelError, match=f"has 9 boxes, a row holds {MOST_BOXES}"):
            scaled_boxes([box] * 9, 64)


class TestRefusedImages:
    @staticmethod
    def refusal(tmp_path: Path, content: bytes) -> FileError:
        path = tmp_path / "secret-name.png"
        path.write_bytes(content)
        with pytest.raises(FileError) as caught:
            read_grey(path)
        assert "secret" not in str(caught.value)
        return caught.value

    def test_no_png(self, tmp_path: Path) -> None:
        error = self.refusal(tmp_path, b"GIF89a" + bytes(100))
        assert (error.code, "no PNG" in str(error)) == ("CXR_UNREADABLE", True)

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
    def test_cut_off(self, tmp_path: Path, share: float) -> None:
        content = png(grey())
        assert self.refusal(tmp_path, content[: int(share * len(content))]).code == "CXR_UNREADABLE"

    def test_a_file_that_cannot_be_opened(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="cannot be read as PNG"):
            read_grey(tmp_path / "absent.png")

    @pytest.mark.parametrize("mode", ["I;16", "1"])
    def test_other_depths(self, tmp_path: Path, mode: str) -> None:
        wide = grey().astype(np.uint16) * 200
        content = png(wide) if mode == "I;16" else png(grey(), "1")
        error = self.refusal(tmp_path, content)
        assert error.code == "CXR_DEPTH"
        assert "bits per value, the release has 8" in str(error)

    def test_sizes_are_judged_before_anything_is_decoded(self, tmp_path: Path) -> None:
        header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
        chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
        error = self.refusal(tmp_path, b"\x89PNG\r\n\x1a\n" + chunk)
        assert (error.code, "60000 x 60000" in str(error)) == ("CXR_SIZE", True)

    def test_huge_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("preprocessing.radiographs.MAX_FILE_BYTES", 1000)
        assert self.refusal(tmp_path, png(grey())).code == "CXR_SIZE"

    def test_colours(self, tmp_path: Path) -> None:
        colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        error = self.refusal(tmp_path, png(colours))
        assert (error.code, "no plain radiograph" in str(error)) == ("CXR_COLOUR", True)

    def test_transparency(self, tmp_path: Path) -> None:
        pixels = np.full((8, 8, 4), 90, dtype=np.uint8)
        assert self.refusal(tmp_path, png(pixels)).code == "CXR_COLOUR"

    def test_an_image_that_is_not_square(self, tmp_path: Path) -> None:
        name = "00000001_000.png"
        folder = release(tmp_path / "r", {name: png(grey(0, (64, 60)))}, [row(name)])
        with pytest.raises(FileError, match="64 x 60 pixels, the release's are square"):
            derived(folder)

    def test_a_blank_image(self, tmp_path: Path) -> None:
        name = "00000001_000.png"
        blank = np.full((SIDE, SIDE), 9, dtype=np.uint8)
        folder = release(tmp_path / "r", {name: png(blank)}, [row(name)])
        with pytest.raises(FileError, match="every pixel of the image is 9"):
            derived(folder)

    @settings(
        max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
    def test_a_flipped_bit_is_seen_or_harmless(self, tmp_path: Path, at: int, bit: int) -> None:
        content = bytearray(png(grey()))
        content[at % len(content)] ^= 1 << bit
        path = tmp_path / "x.png"
        path.write_bytes(content)
        try:
            pixels, _ = read_grey(path)
        except FileError:
            return
        assert np.array_equal(pixels, grey())


class TestDiscover:
    def test_each_disagreement_has_its_own_code(self, tmp_path: Path) -> None:
        names = [f"0000000{i}_000.png" for i in range(1, 10)]
        rows = [
            row(names[0]),
            row(names[1], "Mass|Wart"),
            row(names[2], "No Finding|Mass"),
            row(names[3], patient="77"),
            row(names[4]),
            row(names[4], "Nodule"),
            row("00000099_000.png"),
            ",Mass,0,,58,M,PA,1,1,1,1",
            row(names[6], ""),
        ]
        boxes = [
            f"{names[0]},Mass,1,2,3,4",
            "00000098_000.png,Mass,1,2,3,4",
            "00000098_000.png,Nodule,1,2,3,4",
            f"{names[0]},Mass,1,2,3",
            f"{names[0]},Wart,1,2,3,4",
            f"{names[0]},Mass,1000,2,300,4",
            f"{names[0]},Mass,1,2,nan,4",
            f"{names[0]},Mass,1,2,0,4",
        ]
        folder = release(
            tmp_path / "r", {name: png(grey()) for name in names[:7]}, rows, boxes=boxes
        )
        found = find(folder)
        assert is_accounted(found)
        assert len(found.cases) == 1
        assert codes(found) == {
            "CXR_LABEL": 4,  # three images and a box
            "CXR_PATIENT_CONFLICT": 1,
            "CXR_ROW_CONFLICT": 1,
            "CXR_NO_ROW": 1,
            "CXR_NO_IMAGE": 1,
            "CXR_ROW": 1,
            "CXR_BOX_NO_IMAGE": 1,
            "CXR_BOX": 4,
        }
        by_code = {item.code: item for item in found.exclusions}
        assert by_code["CXR_NO_IMAGE"].files == 0
        assert by_code["CXR_NO_ROW"].files == 1
        assert "2 boxes" in by_code["CXR_BOX_NO_IMAGE"].detail
        assert "0000" not in repr([item for item in found.exclusions if "CXR_" in item.code])

    def test_an_unreadable_image_does_not_hold_up_the_others(self, tmp_path: Path) -> None:
        names = ["00000001_000.png", "00000002_000.png"]
        images = {names[0]: b"\x89PNG broken", names[1]: png(grey())}
        found = find(release(tmp_path / "r", images, [row(name) for name in names]))
        outcomes = []
        for case in found.cases:
            try:
                outcomes += chestxray.derive(case, Options(image_size=32)).examples  # type: ignore[arg-type]
            except PreprocessingError as error:
                outcomes.append(error.code)
        assert len(outcomes) == 2
        assert "CXR_UNREADABLE" in outcomes

    def test_the_twelve_folders_of_the_archives_are_one(self, tmp_path: Path) -> None:
        names = ["00000001_000.png", "00000002_000.png"]
        folder = release(tmp_path / "r", {names[0]: png(grey())}, [row(name) for name in names])
        (folder / "images_002" / "images").mkdir(parents=True)
        (folder / "images_002" / "images" / names[1]).write_bytes(png(grey(1)))
        (folder / "images_002" / "images" / names[0]).write_bytes(png(grey()))
        (folder / "images" / f"._{names[0]}").write_bytes(b"macOS")
        (folder / "README.pdf").write_bytes(b"pdf")
        (folder / "Data_Entry_2017.csv").write_text("of 2017, with other labels")
        found = find(folder)
        assert len(found.cases) == 2
        assert found.exclusions == ()
        assert found.skipped == {"SAME_IMAGE_AGAIN": 1, "HIDDEN": 1, "NOT_PNG": 1, "TABLE": 2}
        assert is_accounted(found)

    def test_different_images_of_one_name_are_refused(self, tmp_path: Path) -> None:
        name = "00000001_000.png"
        folder = release(tmp_path / "r", {name: png(grey())}, [row(name)])
        (folder / "more").mkdir()
        (folder / "more" / name).write_bytes(png(grey(1)))
        found = find(folder)
        assert codes(found) == {"CXR_IMAGE_TWICE": 1}
        assert is_accounted(found)

    def test_equal_rows_are_one(self, tmp_path: Path) -> None:
        name = "00000001_000.png"
        folder = release(tmp_path / "r", {name: png(grey())}, [row(name), row(name)])
        assert len(find(folder).cases) == 1

    def test_a_folder_without_images_has_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        found = find(tmp_path)
        assert (found.cases, found.seen, found.skipped) == ((), 1, {"NOT_PNG": 1})

    def test_images_without_table_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "00000001_000.png").write_bytes(png(grey()))
        with pytest.raises(LabelError, match=r"no Data_Entry_2017\*\.csv") as caught:
            find(tmp_path)
        assert caught.value.code == "CXR_NO_TABLE"

    def test_two_tables_that_differ_are_refused(self, tmp_path: Path) -> None:
        folder = release(tmp_path / "r", {"00000001_000.png": png(grey())}, [], boxes=[])
        (folder / "old").mkdir()
        (folder / "old" / "BBox_List_2017.csv").write_text("other")
        with pytest.raises(LabelError, match="2 files 'bbox_list") as caught:
            find(folder)
        assert caught.value.code == "CXR_TABLES_DIFFER"

    def test_progress_counts_the_images(self, tmp_path: Path) -> None:
        name, seen = "00000001_000.png", []
        chestxray.discover(
            Sources(root=release(tmp_path / "r", {name: png(grey())}, [row(name)])),
            Options(),
            pseudonyms=PSEUDONYMS,
            progress=lambda *step: seen.append(step),
        )
        assert seen == [("check", 1, 1)]

    def test_a_case_travels_and_knows_when_it_changed(self, tmp_path: Path) -> None:
        name = "00000001_000.png"
        folder = release(tmp_path / "a", {name: png(grey())}, [row(name)])
        (case,) = find(folder).cases
        assert pickle.loads(pickle.dumps(case)) == case
        assert (case.files, case.guarded) == (1, True)
        (again,) = find(folder).cases
        assert again.fingerprint == case.fingerprint
        (folder / "Data_Entry_2017_v2020.csv").write_text(f"{HEAD}\n{row(name, 'Nodule')}\n")
        (relabelled,) = find(folder).cases
        (folder / "images" / name).write_bytes(png(grey(5)))
        (repainted,) = find(folder).cases
        prints = {case.fingerprint, relabelled.fingerprint, repainted.fingerprint}
        assert len(prints) == 3


class TestTables:
    @pytest.mark.parametrize(
        ("text", "index"),
        [("Infiltrate", 3), ("infiltration", 3), ("Pleural Thickening", 12), ("HERNIA", 13)],
    )
    def test_spellings(self, text: str, index: int) -> None:
        assert finding_index(text) == index

    def test_an_unknown_finding(self) -> None:
        with pytest.raises(LabelError, match="'Wart' is none of the 14"):
            finding_index("Wart")

    @pytest.mark.parametrize("read", [read_entries, read_boxes])
    def test_tables_that_are_none(self, tmp_path: Path, read: object) -> None:
        path = tmp_path / "t.csv"
        for content, match in (
            (b"", "is empty"),
            (b" , ,\r\n\r\n", "is empty"),
            (b"\xff\xfe\x00x", "cannot be read as UTF-8"),
            (b"a,b\n1,2\n", "a table needs the columns 'Image Index'"),
            (b"Image Index,Finding Label\n" + b"x" * 200_000, "is no CSV"),
        ):
            path.write_bytes(content)
            with pytest.raises(LabelError, match=match):
                read(path)  # type: ignore[operator]

    def test_a_missing_table(self, tmp_path: Path) -> None:
        with pytest.raises(LabelError, match="cannot be read"):
            read_list(tmp_path / "absent.txt")

    def test_a_quoted_header_and_a_patient_without_number_in_the_name(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        head = HEAD.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"')
        path.write_text(f"{head}\n{row('a.png', patient='0042.0')}\n")
        (entry,), faults = read_entries(path)
        assert faults == ()
        assert (entry.patient, entry.columns, entry.rows) == ("42", 2682, 2749)
        assert (entry.spacing_x_mm, entry.spacing_y_mm) == (0.143, 0.143)

    def test_values_that_are_none_stay_out(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        path.write_text(f"{HEAD}\n00000001_000.png,Mass,x,1,old,M/F?,see note,,-,0,inf\n")
        (entry,), _ = read_entries(path)
        assert (entry.follow_up, entry.age_years, entry.sex, entry.view) == (None, None, "", "")
        assert (entry.columns, entry.rows) == (None, None)
        assert (entry.spacing_x_mm, entry.spacing_y_mm) == (None, None)

    def test_a_box_over_the_rim_by_rounding_is_cut_to_the_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "b.csv"
        path.write_text(f"{BOX_HEAD}\na.png,Mass,-0.5,1000,100.5,24.9\n")
        (box,), _ = read_boxes(path)
        assert (box.x, box.y, box.width) == (0, 1000, 100)
        assert box.height == 24

    def test_patients_in_names(self) -> None:
        assert patient_of("00000123_004.png") == "123"
        assert patient_of("scan.png") == ""


class TestOfficialSplit:
    def test_lists_take_any_ends_of_line_and_folders(self, tmp_path: Path) -> None:
        path = tmp_path / "l.txt"
        path.write_bytes(b"images/00000001_000.png\r\n\r\n00000002_000.png ")
        assert read_list(path) == ("00000001_000.png", "00000002_000.png")

    def test_one_list_alone_says_it_all(self) -> None:
        train, test = ["00000001_000.png"], ["00000002_000.png"]
        for part in (official_parts(train, test), official_parts(train, None)):
            assert [part("1"), part("2")] == ["train_val", "test"]
        assert official_parts(None, test)("1") == "train_val"
        assert official_parts(train, test)("3") == ""
        assert official_parts(None, None)("1") == ""

    def test_lists_that_share_a_patient_are_refused(self) -> None:
        with pytest.raises(SplitError, match="1 patients have images in the train/val list"):
            official_parts(["00000001_000.png"], ["00000001_001.png"])

    def test_a_patient_in_neither_list_is_left_out(self, tmp_path: Path) -> None:
        names = [f"0000000{i}_000.png" for i in (1, 2, 3)]
        lists = {"train_val_list.txt": names[:1], "test_list.txt": names[1:2]}
        images = {name: png(grey(i)) for i, name in enumerate(names)}
        found = find(release(tmp_path / "r", images, [row(name) for name in names], lists=lists))
        assert codes(found) == {"CXR_NOT_LISTED": 1}
        parts = {case.part for case in found.cases}  # type: ignore[attr-defined]
        assert parts == {"train_val", "test"}

    @given(
        official=st.lists(st.sampled_from(["train_val", "test"]), min_size=12, max_size=40),
        seed=st.integers(0, 99),
    )
    def test_official_test_patients_are_the_test_part(self, official: list[str], seed: int) -> None:
        official = ["train_val"] * 8 + official
        subjects = [f"p{i}" for i in range(len(official))]
        split = split_officially(
            [*subjects, *subjects],
            [0] * (2 * len(subjects)),
            [*official, *official],
            test_fraction=0.5,
            validation_fraction=0.2,
            seed=seed,
        )
        held_out = {s for s, part in zip(subjects, official, strict=True) if part == "test"}
        assert {s for s, part in split.items() if part == "test"} == held_out
        assert set(split) == set(subjects)
        assert "validation" in split.values()

    def test_without_official_parts_the_split_is_our_own(self) -> None:
        subjects = [f"p{i}" for i in range(20)]
        split = split_officially(
            subjects, [0] * 20, [""] * 20, test_fraction=0.25, validation_fraction=0.2, seed=0
        )
        assert Counter(split.values()) == {"test": 5, "validation": 3, "train": 12}

    def test_only_test_patients(self) -> None:
        split = split_officially(
            ["a", "b"], [0, 0], ["test"] * 2, test_fraction=0.2, validation_fraction=0.2, seed=0
        )
        assert split == {"a": "test", "b": "test"}

    def test_a_patient_in_two_parts_is_refused(self) -> None:
        with pytest.raises(SplitError, match="several parts of the published split"):
            split_officially(
                ["a", "a"], [0, 0], ["test", ""], test_fraction=0.2, validation_fraction=0.0, seed=0
            )
