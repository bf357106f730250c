import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from preprocessing import brain_scores, brats, brats_files
from preprocessing.brats_files import MODALITIES, BratsCase, patient_of
from preprocessing.case_files import write_case
from preprocessing.errors import FileError, LabelError, PreprocessingError
from preprocessing.phantoms.brats18 import Brats18Options, write_brats18
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Case, Died

KEY = Pseudonyms(bytes(range(32)))
SIZE = 96
SMALL = brats.Options(image_size=SIZE, min_tumour_area=160, min_half_area=80)
ACCOUNT = ("none", "small", "crossing", "unusable", "used")
KINDS = ("t1", "t1ce", "t2", "flair", "seg")


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("brats") / "heads"
    options = Brats18Options(spacing_mm=2.5, matrix=SIZE, slices=62)
    write_brats18(folder, subjects=8, seed=5, options=options)
    return folder


def truth(heads: Path) -> list[dict]:
    return json.loads((heads / "truth.json").read_text())


@pytest.fixture
def one(heads, tmp_path) -> Path:
    """A folder of one large case that crosses nothing, to be damaged."""
    facts = max(
        (fact for fact in truth(heads) if not fact["crosses"]),
        key=lambda fact: fact["tumour_left"] + fact["tumour_right"],
    )
    (source,) = heads.glob(f"*/{facts['case']}")
    shutil.copytree(source, tmp_path / "one" / "HGG" / source.name)
    return tmp_path / "one"


def file_of(root: Path, kind: str) -> Path:
    (path,) = root.rglob(f"*_{kind}.nii.gz")
    return path


def discovered(root: Path, options=SMALL, **how):
    return brats.discover(brats.Sources(root=root), options, pseudonyms=KEY, **how)


def only_case(root: Path) -> BratsCase:
    (case,) = discovered(root).cases
    return case


def rewritten(path: Path, change) -> None:
    """Change the voxels (x, y, z) of a file."""
    image = nibabel.load(path)
    values = change(np.asarray(image.dataobj).copy())
    header = image.header.copy()
    header.set_data_dtype(values.dtype)
    header["scl_slope"] = np.nan
    header["scl_inter"] = np.nan
    fresh = nibabel.Nifti1Image(values, image.affine, header)
    path.write_bytes(gzip.compress(fresh.to_bytes(), mtime=0))


def turned(path: Path, codes: tuple[str, str, str], target: Path) -> None:
    """Store the same head along other axes."""
    image = nibabel.load(path)
    values = np.asarray(image.dataobj)
    turn = ornt_transform(axcodes2ornt(nibabel.aff2axcodes(image.affine)), axcodes2ornt(codes))
    affine = image.affine @ inv_ornt_aff(turn, values.shape)
    fresh = nibabel.Nifti1Image(apply_orientation(values, turn), affine)
    fresh.set_sform(affine, code=1)
    content = fresh.to_bytes()
    target.write_bytes(gzip.compress(content) if target.name.lower().endswith("gz") else content)


def brats_rows(case: BratsCase, options: brats.Options):
    return brats.derive(case, options).examples


def rows_of(case: BratsCase, options: brats.Options):
    """The rows of a case, or none where its tumour is too small or crosses everywhere."""
    try:
        return brats_rows(case, options)
    except LabelError as error:
        if error.code not in {"NO_LARGE_TUMOUR", "CROSSING_MIDLINE"}:
            raise
        return ()


class TestDerive:
    @pytest.mark.parametrize("crop", ["midline", "tumour-edge"])
    @pytest.mark.parametrize("crossing", ["exclude", "label-both"])
    def test_halves_add_up_and_no_picture_labelled_0_holds_tumour(self, crop, crossing, heads):
        options = brats.Options(
            crop=crop, crossing=crossing, image_size=SIZE, min_tumour_area=160, min_half_area=80
        )
        pairs = 0
        for case in discovered(heads).cases:
            volumes = [
                np.asarray(nibabel.load(case.paths[kind]).dataobj).transpose(2, 1, 0)
                for kind in (*MODALITIES, "seg")
            ]
            rows = rows_of(case, options)
            by_slice: dict[int, list] = {}
            for row in rows:
                by_slice.setdefault(int(row.provenance["z"]), []).append(row)
            for z, found in by_slice.items():
                tumour = volumes[4][z] > 0
                assert tumour.sum() > 160
                pairs += len(found) == 2
                if len(found) == 2:
                    for channel in range(4):
                        union = (
                            found[0].arrays["image"][channel] + found[1].arrays["image"][channel]
                        )
                        np.testing.assert_array_equal(union, volumes[channel][z])
                        overlap = [row.arrays["image"][channel] != 0 for row in found]
                        assert not (overlap[0] & overlap[1]).any()
                    union = found[0].arrays["mask"] + found[1].arrays["mask"]
                    np.testing.assert_array_equal(union, tumour)
                for row in found:
                    offset, slope = row.arrays["cut"]
                    y, x = np.mgrid[:SIZE, :SIZE]
                    right = x < np.float64(offset) + np.float64(slope) * y
                    inside = right if row.provenance["side"] == "right" else ~right
                    assert not row.arrays["image"][:, ~inside].any()
                    np.testing.assert_array_equal(row.arrays["mask"] > 0, tumour & inside)
                    assert row.provenance["tumour_pixels"] == (tumour & inside).sum()
                    if row.label == 0:
                        assert not (tumour & inside).any()
                    else:
                        assert (tumour & inside).any()
        assert pairs > 20

    @pytest.mark.parametrize("crop", ["midline", "tumour-edge"])
    def test_every_slice_is_accounted_for(self, crop, heads):
        options = brats.Options(crop=crop, image_size=SIZE, min_tumour_area=160)
        codes = set()
        for case in discovered(heads).cases:
            try:
                found = brats.derive(case, options)
            except PreprocessingError as error:
                codes.add(error.code)
                continue
            (account,) = {
                tuple((name, row.provenance[f"slices_{name}"]) for name in ACCOUNT)
                for row in found.examples
            }
            slices = dict(account)
            assert sum(slices.values()) == case.shape[0]
            crossing = [note for note in found.notes if note.code == "CROSSING_MIDLINE"]
            assert len(crossing) == slices["crossing"]
            assert len({row.provenance["z"] for row in found.examples}) == slices["used"]
            codes |= {note.code for note in found.notes}
            assert all(note.files == 0 for note in found.notes)
            if crop == "tumour-edge":
                assert slices["crossing"] == 0
        assert ("CROSSING_MIDLINE" in codes) == (crop == "midline")

    def test_the_cut_does_not_depend_on_the_tumours_mark(self, one):
        before = {row.sample_id: row.arrays["cut"] for row in brats_rows(only_case(one), SMALL)}
        file = file_of(one, "seg")
        rewritten(file, lambda seg: seg * (np.arange(SIZE) % 3 > 0).astype(np.uint8)[:, None, None])
        after = brats_rows(only_case(one), brats.Options(image_size=SIZE, min_tumour_area=20))
        shared = [row for row in after if row.sample_id in before]
        assert shared
        for row in shared:
            np.testing.assert_array_equal(row.arrays["cut"], before[row.sample_id])

    def test_the_slice_affine_leads_to_the_same_place(self, one):
        case = only_case(one)
        row = brats_rows(case, SMALL)[0]
        z = row.provenance["z"]
        place = np.array(case.affine) @ [30, 40, z, 1]
        np.testing.assert_allclose(row.arrays["slice_affine"] @ [30, 40, 0, 1], place)

    def test_normalisation_is_that_of_the_brain_and_leaves_the_background(self, one):
        row = brats_rows(only_case(one), SMALL)[0]
        volumes = np.stack(
            [
                np.asarray(nibabel.load(file_of(one, kind.lower())).dataobj, float)
                for kind in MODALITIES
            ]
        )
        brain = (volumes != 0).any(axis=0)
        for channel, volume in enumerate(volumes):
            assert row.arrays["brain_mean"][channel] == np.float32(volume[brain].mean())
            assert row.arrays["brain_sd"][channel] == np.float32(volume[brain].std())
        image = row.arrays["image"]
        scores = brain_scores.normalised(
            image, brain_mean=row.arrays["brain_mean"], brain_sd=row.arrays["brain_sd"]
        )
        background = (image == 0).all(axis=0)
        assert not scores[:, background].any()
        mean, sd = (row.arrays[name][:, None] for name in ("brain_mean", "brain_sd"))
        np.testing.assert_allclose(
            scores[:, ~background] * sd + mean, image[:, ~background], atol=0.01
        )

    def test_rows_fit_the_layout_and_the_protocol(self, one, tmp_path):
        case = only_case(one)
        assert isinstance(case, Case)
        assert not case.guarded
        assert case.files == 5
        for dtype in ("int16", "float32"):
            options = brats.Options(image_size=SIZE, min_tumour_area=160, dtype=dtype)
            examples = brats_rows(case, options)
            layout = brats.layout(image_size=SIZE, dtype=dtype)
            rows = write_case(tmp_path / f"{dtype}.case", examples, layout=layout)
            assert len({row.sample_id for row in rows}) == len(rows)

    def test_float32_stores_what_int16_cannot(self, one):
        path = file_of(one, "t2")
        rewritten(path, lambda voxels: (voxels / np.float32(3)).astype(np.float32))
        exact = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
        options = brats.Options(image_size=SIZE, min_tumour_area=160, dtype="float32")
        rows = brats_rows(only_case(one), options)
        first, second = rows[:2]
        union = first.arrays["image"][2] + second.arrays["image"][2]
        np.testing.assert_array_equal(union, exact[first.provenance["z"]])
        assert first.provenance["warnings"] == ""

    def test_digits_that_float32_loses_are_told(self, one):
        rewritten(file_of(one, "t2"), lambda voxels: voxels / 3.0)
        options = brats.Options(image_size=SIZE, min_tumour_area=160, dtype="float32")
        warned = brats_rows(only_case(one), options)[0].provenance["warnings"]
        assert warned == "NII_ROUNDED: T2 has more digits than float32 holds"

    @pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.uint16])
    def test_whole_numbers_of_any_type_are_stored_as_int16(self, kind, one):
        before = brats_rows(only_case(one), SMALL)
        # T1 of phantoms may dip below 0 outside of uint16; the type is what matters here.
        rewritten(file_of(one, "t1"), lambda voxels: np.maximum(voxels, 0).astype(kind))
        after = brats_rows(only_case(one), SMALL)
        assert len(after) == len(before)
        for a, b in zip(after, before, strict=True):
            np.testing.assert_array_equal(a.arrays["image"][0], np.maximum(b.arrays["image"][0], 0))

    def test_labels_of_every_year(self, one):
        rows = brats_rows(only_case(one), SMALL)
        path = file_of(one, "seg")
        rewritten(path, lambda seg: np.where(seg == 4, 3, seg).astype(np.float64))
        for a, b in zip(brats_rows(only_case(one), SMALL), rows, strict=True):
            np.testing.assert_array_equal(a.arrays["mask"], b.arrays["mask"])


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("S", "P", "R"), ("P", "I", "L")], ids="".join)
def test_another_order_of_axes_and_other_names_give_the_same_pictures(codes, one, tmp_path):
    later = {"t1": "t1n", "t1ce": "T1C", "t2": "t2w", "flair": "T2F", "seg": "SEG"}
    folder = tmp_path / "later" / "anything"
    folder.mkdir(parents=True)
    for number, (kind, name) in enumerate(later.items()):
        suffix = ".nii" if number % 2 else ".NII.gz"
        turned(file_of(one, kind), codes, folder / f"BraTS-GLI-00007-100-{name}{suffix}")
    case = only_case(tmp_path / "later")
    assert case.subject_id == KEY.patient("brats-gli-00007")
    rows = brats_rows(only_case(one), SMALL)
    for a, b in zip(brats_rows(case, SMALL), rows, strict=True):
        assert a.label == b.label
        assert a.provenance["z"] == b.provenance["z"]
        for name in ("image", "mask", "cut", "brain_mean", "brain_sd"):
            np.testing.assert_array_equal(a.arrays[name], b.arrays[name])
        np.testing.assert_allclose(a.arrays["slice_affine"], b.arrays["slice_affine"], atol=1e-3)


class TestDiscover:
    def test_every_file_is_in_one_place(self, heads, tmp_path):
        root = tmp_path / "messy"
        shutil.copytree(heads, root)
        (root / "survival_data.csv").write_text("id,age\n")
        (root / "HGG" / "W39_1998.09.19_Segm.nii").write_bytes(b"")
        next(root.rglob("*_t2.nii.gz")).unlink()
        seg = next(root.rglob("*3_1_seg.nii.gz"))
        seg.unlink()
        again = next(root.rglob("*4_1_t1.nii.gz"))
        shutil.copy(again, again.with_name(again.name.upper().removesuffix(".GZ")))
        found = discovered(root)
        used = sum(case.files for case in found.cases)
        assert found.seen == used + sum(x.files for x in found.exclusions) + sum(
            found.skipped.values()
        )
        assert found.skipped == {"NOT_NIFTI": 2}  # the table, and the phantoms' truth
        assert {x.code for x in found.exclusions} >= {
            "NII_NAME",
            "NII_MISSING_MODALITY",
            "NII_DUPLICATE",
        }
        text = repr(found.exclusions)
        assert "PHANTOM" not in text.upper().replace("HALF", "")
        assert "1998" not in text

    def test_the_answer_depends_on_pseudonyms_alone(self, heads, tmp_path):
        flat = tmp_path / "flat"
        flat.mkdir()
        for path in heads.rglob("*.nii.gz"):
            shutil.copy2(path, flat / path.name)
        there, here = discovered(heads).cases, discovered(flat).cases
        assert [case.case_id for case in there] == [case.case_id for case in here]
        assert [case.fingerprint for case in there] == [case.fingerprint for case in here]
        assert {case.grade for case in there} == {"HGG", "LGG"}
        assert {case.grade for case in here} == {""}

    def test_progress_and_a_reader_that_dies(self, heads):
        seen = []
        found = discovered(
            heads,
            mapper=lambda _, items: [Died() for _ in items],
            progress=lambda *args: seen.append(args),
        )
        assert {x.code for x in found.exclusions} == {"PARSER_CRASH"}
        assert sum(x.files for x in found.exclusions) == 40
        assert seen[-1] == ("check", 8, 8)

    def test_a_closed_folder_is_told(self, heads, monkeypatch):
        listing = brats_files.list_files(heads)
        closed = type(listing)(files=(), skipped={}, closed=(heads.resolve() / "HGG",))
        monkeypatch.setattr(brats_files, "list_files", lambda _: closed)
        (exclusion,) = discovered(heads).exclusions
        assert exclusion.code == "UNREADABLE"

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(FileError, match="does not exist"):
            discovered(tmp_path / "no")

    @pytest.mark.parametrize(
        ("case", "patient"),
        [
            ("Brats18_CBICA_AAB_1", "brats18_cbica_aab"),
            ("Brats18_2013_2_1", "brats18_2013_2"),
            ("BraTS20_Training_001", "brats20_training_001"),
            ("BraTS2021_00000", "brats2021_00000"),
            ("BraTS-GLI-00005-101", "brats-gli-00005"),
            ("TCGA-DU-7294", "tcga-du-7294"),
        ],
    )
    def test_time_points_of_one_patient(self, case, patient):
        assert patient_of(case) == patient

    @given(st.text(alphabet="abc-_019", min_size=1, max_size=12))
    @settings(max_examples=50)
    def test_a_patient_of_a_patient_is_no_other(self, name):
        assert patient_of(f"BraTS-GLI-00005-{name}") != patient_of(f"BraTS-GLI-00006-{name}")


def nan_somewhere(voxels):
    voxels = voxels.astype(np.float32)
    voxels[40, 40, 30] = np.nan
    return voxels


class TestRefusals:
    def excluded(self, root: Path) -> tuple[str, str]:
        found = discovered(root)
        assert not found.cases
        (exclusion,) = found.exclusions
        assert exclusion.where.startswith("case ")
        assert exclusion.subject_id
        return exclusion.code, exclusion.detail

    def refused(self, root: Path, code: str, match: str, options=SMALL) -> None:
        with pytest.raises(PreprocessingError, match=match) as caught:
            brats_rows(only_case(root), options)
        assert caught.value.code == code
        assert "PHANTOM" not in str(caught.value)

    @pytest.mark.parametrize("kind", KINDS[:4])
    def test_missing_modality(self, kind, one):
        file_of(one, kind).unlink()
        code, detail = self.excluded(one)
        assert code == "NII_MISSING_MODALITY"
        assert dict(zip(KINDS, MODALITIES, strict=False))[kind] in detail

    def test_missing_segmentation(self, one):
        file_of(one, "seg").unlink()
        assert self.excluded(one)[0] == "NII_MISSING_SEG"

    def test_a_file_twice(self, one):
        path = file_of(one, "t1")
        shutil.copy(path, path.with_name(path.name.replace("_t1.", "-T1N.")))
        code, detail = self.excluded(one)
        assert code == "NII_DUPLICATE"
        assert "T1 is there 2 times" in detail

    @pytest.mark.parametrize("kind", ["t2", "seg"])
    def test_another_number_of_voxels(self, kind, one):
        rewritten(file_of(one, kind), lambda voxels: voxels[:, :, :-1])
        code, detail = self.excluded(one)
        assert code == "NII_GRID"
        assert "(61, 96, 96)" in detail

    def test_another_place(self, one):
        path = file_of(one, "flair")
        image = nibabel.load(path)
        affine = image.affine.copy()
        affine[0, 3] += 2.5
        path.write_bytes(
            gzip.compress(nibabel.Nifti1Image(np.asarray(image.dataobj), affine).to_bytes())
        )
        code, detail = self.excluded(one)
        assert code == "NII_GRID"
        assert "FLAIR lies up to 2.5 mm off T1" in detail

    def test_a_header_that_is_none(self, one):
        file_of(one, "t2").write_bytes(b"lost")
        assert self.excluded(one)[0] == "NII_UNREADABLE"

    def test_truncated(self, one):
        path = file_of(one, "t2")
        path.write_bytes(path.read_bytes()[:-5000])
        self.refused(one, "NII_TRUNCATED", "ends early")

    def test_nan(self, one):
        rewritten(file_of(one, "t1ce"), nan_somewhere)
        self.refused(one, "NII_NAN", "T1ce holds NaN")

    def test_fractions(self, one):
        rewritten(file_of(one, "t1"), lambda voxels: voxels.astype(np.float32) / 2)
        self.refused(one, "NII_NOT_INT16", "T1 holds values from .* build with --dtype float32")

    def test_beyond_int16(self, one):
        rewritten(file_of(one, "t1"), lambda voxels: voxels.astype(np.int32) * 100)
        self.refused(one, "NII_NOT_INT16", "without loss")

    @pytest.mark.parametrize("value", [0, 7])
    def test_a_modality_of_one_value(self, value, one):
        rewritten(file_of(one, "t2"), lambda voxels: np.full_like(voxels, value))
        self.refused(one, "NII_EMPTY", "T2 has one value")

    def test_empty_segmentation(self, one):
        rewritten(file_of(one, "seg"), np.zeros_like)
        self.refused(one, "NII_EMPTY_SEG", "marks no voxel")

    def test_interpolated_segmentation(self, one):
        rewritten(file_of(one, "seg"), lambda seg: (seg * 0.7).astype(np.float32))
        self.refused(one, "NII_SEG_FLOAT", "between its labels")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_segmentation_of_no_numbers(self, value, one):
        rewritten(file_of(one, "seg"), lambda seg: np.where(seg > 0, np.float32(value), 0))
        self.refused(one, "NII_SEG_FLOAT", "between its labels")

    def test_labels_that_no_integer_holds(self, one):
        rewritten(file_of(one, "seg"), lambda seg: np.where(seg > 0, np.float32(1e30), 0))
        self.refused(one, "NII_SEG_LABELS", "holds the labels")

    @pytest.mark.parametrize("labels", [[1, 5], [1, 2, 3, 4], [-1, 1]])
    def test_labels_of_no_year(self, labels, one):
        def change(seg):
            seg = seg.astype(np.int16)
            places = np.flatnonzero(seg)[: len(labels)]
            seg.reshape(-1)[places] = labels
            seg[seg == 4] = 4 if 4 in labels else 2
            return seg

        rewritten(file_of(one, "seg"), change)
        self.refused(one, "NII_SEG_LABELS", f"the labels .*{labels[-1]}")

    def test_another_size(self, one):
        self.refused(one, "NII_SIZE", "96 x 96 pixels", brats.Options())

    def test_no_large_tumour(self, one):
        options = brats.Options(image_size=SIZE, min_tumour_area=5000)
        self.refused(one, "NO_LARGE_TUMOUR", "no more than --min-tumour-area 5000", options)

    def test_no_brain_to_halve(self, one):
        def corner(voxels):
            voxels[:, :, :] = 0
            voxels[2:8, 2:8, 2:8] = np.arange(216).reshape(6, 6, 6) + 1
            return voxels

        for kind in KINDS[:4]:
            rewritten(file_of(one, kind), corner)
        self.refused(one, "NO_MIDLINE", "too little of it")

    def test_nothing_but_crossing_slices(self, one):
        def across(seg):
            seg[SIZE // 2 - 30 : SIZE // 2 + 30, 40:56, 20:30] = 1
            seg[:, :, :20] = 0
            seg[:, :, 30:] = 0
            return seg

        rewritten(file_of(one, "seg"), across)
        self.refused(one, "CROSSING_MIDLINE", "none of 10 slices can be used")
        both = brats.Options(
            crossing="label-both", image_size=SIZE, min_tumour_area=160, min_half_area=80
        )
        assert {row.label for row in brats_rows(only_case(one), both)} == {1}


class TestReference:
    def test_a_real_case_is_refused_at_the_default_area(self, reference_data):
        found = discovered(reference_data / "brats_style", brats.Options())
        assert (found.seen, len(found.cases), found.exclusions) == (5, 1, ())
        with pytest.raises(PreprocessingError, match="has 960 pixels") as caught:
            brats_rows(found.cases[0], brats.Options())
        assert caught.value.code == "NO_LARGE_TUMOUR"

    def test_its_tumour_lies_on_the_patients_right(self, reference_data):
        options = brats.Options(min_tumour_area=300)
        (case,) = discovered(reference_data / "brats_style", options).cases
        rows = brats_rows(case, options)
        assert len(rows) > 20
        for row in rows:
            assert row.label == (row.provenance["side"] == "right")
            columns = np.flatnonzero(row.arrays["mask"].any(axis=0))
            assert (columns < 120).all()
        assert min(int(row.arrays["image"].min()) for row in rows) < 0
