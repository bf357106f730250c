import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing import chestxray
from preprocessing.chestxray import Options, Sources
from preprocessing.chestxray_tables import CLASSES, patient_of, read_boxes, read_entries, read_list
from preprocessing.errors import OutputError
from preprocessing.phantoms.chestxray14 import BOXED, expose, render, write_chestxray14
from preprocessing.phantoms.thorax import FINDINGS, canvas, draw_anatomy
from preprocessing.pseudonyms import Pseudonyms


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cxr") / "release"
    write_chestxray14(out, subjects=24, seed=2, image_size=128)
    return out


def anatomy(seed: int = 0):
    return draw_anatomy(np.random.default_rng(seed))


class TestFiles:
    def test_every_image_becomes_a_case(self, written: Path) -> None:
        found = chestxray.discover(
            Sources(root=written), Options(), pseudonyms=Pseudonyms(bytes(range(32)))
        )
        assert found.exclusions == ()
        assert found.skipped == {"TABLE": 4}
        assert len(found.cases) == len(list((written / "images").iterdir()))
        assert len({case.subject_id for case in found.cases}) == 24
        for case in found.cases:
            (example,) = chestxray.derive(case, Options(image_size=64)).examples  # type: ignore[arg-type]
            assert example.provenance["warnings"] == ""

    def test_names_rows_and_lists_agree(self, written: Path) -> None:
        names = sorted(path.name for path in (written / "images").iterdir())
        entries, faults = read_entries(written / "Data_Entry_2017_v2020.csv")
        assert faults == ()
        assert sorted(entry.image for entry in entries) == names
        train, test = (read_list(written / f"{n}_list.txt") for n in ("train_val", "test"))
        assert sorted([*train, *test]) == names
        assert {patient_of(n) for n in train}.isdisjoint(patient_of(n) for n in test)
        assert len({patient_of(name) for name in test}) == 6

    def test_boxes_are_those_of_test_images_and_of_findings_that_have_them(
        self, written: Path
    ) -> None:
        boxes, faults = read_boxes(written / "BBox_List_2017.csv")
        assert faults == ()
        entries = {e.image: e for e in read_entries(written / "Data_Entry_2017_v2020.csv")[0]}
        tests = set(read_list(written / "test_list.txt"))
        expected = Counter(
            (name, finding)
            for name in tests
            for finding in entries[name].findings
            if CLASSES[finding] in BOXED
        )
        assert Counter((box.image, box.finding) for box in boxes) == expected
        assert expected.total() > 3

    def test_some_images_are_rgba_as_in_the_release(self, written: Path) -> None:
        modes = Counter()
        for path in (written / "images").iterdir():
            with Image.open(path) as image:
                modes[image.mode] += 1
        assert modes["L"] > modes["RGBA"] >= 1

    def test_the_same_arguments_give_the_same_bytes(self, tmp_path: Path) -> None:
        for name, mapper in (("a", map), ("b", lambda f, items: [f(item) for item in items])):
            write_chestxray14(tmp_path / name, subjects=3, seed=5, image_size=64, mapper=mapper)
        write_chestxray14(tmp_path / "c", subjects=3, seed=6, image_size=64)
        contents = [
            {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
            for n in "abc"
        ]
        assert contents[0] == contents[1]
        assert contents[0] != contents[2]

    def test_only_the_findings_asked_for(self, tmp_path: Path) -> None:
        write_chestxray14(
            tmp_path / "r", subjects=6, seed=0, image_size=32, findings=("Mass", "Effusion")
        )
        with (tmp_path / "r" / "Data_Entry_2017_v2020.csv").open() as stream:
            shown = {
                name for r in csv.DictReader(stream) for name in r["Finding Labels"].split("|")
            }
        assert shown == {"Mass", "Effusion", "No Finding"}

    def test_progress(self, tmp_path: Path) -> None:
        steps = []
        write_chestxray14(
            tmp_path / "r",
            subjects=2,
            image_size=32,
            progress=lambda done, total: steps.append((done, total)),
        )
        assert steps == [(1, 2), (2, 2)]

    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="subjects is 0"):
            write_chestxray14(tmp_path / "r", subjects=0)
        with pytest.raises(ValueError, match=r"findings name \['Wart'\]"):
            write_chestxray14(tmp_path / "r", subjects=1, findings=("Wart",))
        (tmp_path / "x").write_text("here")
        with pytest.raises(OutputError, match="not empty"):
            write_chestxray14(tmp_path, subjects=1)


class TestPictures:
    @pytest.mark.parametrize("name", CLASSES)
    @pytest.mark.parametrize("seed", range(3))
    def test_a_finding_shows_inside_its_box_and_nowhere_else(self, name: str, seed: int) -> None:
        plain = render(anatomy(seed), (), seed=(seed,), side=256)
        shown = render(anatomy(seed), (name,), seed=(seed,), side=256)
        changed = np.abs(shown.attenuation - plain.attenuation)
        x, y, width, height = (value / 4 for value in shown.boxes[name])
        inside = np.zeros(changed.shape, dtype=bool)
        inside[int(y) : int(y + height + 0.99), int(x) : int(x + width + 0.99)] = True
        assert changed[inside].max() > 0.04
        assert changed[inside].sum() > 0.75 * changed.sum()

    @pytest.mark.parametrize("name", CLASSES)
    def test_boxes_lie_in_the_picture(self, name: str) -> None:
        for seed in range(6):
            x, y, width, height = render(anatomy(seed), (name,), seed=(seed,), side=128).boxes[name]
            assert min(x, y) >= 0
            assert min(width, height) > 8
            assert max(x + width, y + height) <= 1024

    def test_one_finding_does_not_move_another(self) -> None:
        alone = render(anatomy(), ("Mass",), seed=(1,), side=128).boxes["Mass"]
        both = render(anatomy(), ("Effusion", "Mass"), seed=(1,), side=128).boxes["Mass"]
        assert alone == both

    def test_lungs_are_dark_and_the_mediastinum_is_bright(self) -> None:
        who = anatomy()
        on = canvas(who, side=128)
        picture = render(who, (), seed=(0,), side=128).attenuation
        lungs = (on.lungs[0] + on.lungs[1]) > 0.9
        middle = (np.abs(on.u) < 0.04) & (on.v > 0.3)
        assert picture[lungs].mean() < 0.7 * picture[middle].mean()
        assert picture[:4, :4].max() < 0.05

    def test_the_heart_points_to_the_patients_left(self) -> None:
        on = canvas(anatomy(), side=128)
        columns = np.argwhere(on.heart < 1)[:, 1]
        assert columns.mean() > 64

    def test_the_outline_does_not_know_the_findings(self) -> None:
        """Zeros are where nothing was exposed, which is drawn apart from what is shown."""
        zeros = []
        for names in ((), CLASSES):
            picture = render(anatomy(), names, seed=(0,), side=128).attenuation
            exposed = [
                expose(picture, size=128, rng=np.random.default_rng(seed)) == 0 for seed in range(8)
            ]
            zeros.append(np.stack(exposed))
        assert np.array_equal(zeros[0], zeros[1])
        assert zeros[0].any()

    def test_every_finding_has_a_painter(self) -> None:
        assert {*FINDINGS, "Cardiomegaly"} == set(CLASSES)
