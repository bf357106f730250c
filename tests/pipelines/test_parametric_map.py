"""Maps as DICOM: in the planes of their source, under its identifiers, and under no others."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.dataset import Dataset

from pipelines.errors import DataError
from pipelines.parametric_map import ParametricMaps, frames_of, parametric_map, source_images
from preprocessing.dicom_series import load_volume
from preprocessing.intake import scan
from preprocessing.intake_records import SeriesIntake
from preprocessing.pseudonyms import Pseudonyms
from tests.preprocessing.dicom_factory import AXIAL, Scan, write_series

KEY = Pseudonyms(bytes(range(32)))
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
FEET_FIRST = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SHAPE = {"slices": 5, "shape": (6, 7), "spacing": (3.0, 2.0, 1.5)}


def intake(folder: Path) -> SeriesIntake:
    (series,) = scan(folder, pseudonyms=KEY).series
    assert series.status == "accepted", series.detail
    return series


def written(tmp_path: Path, voxels: np.ndarray, *, signed: bool = True) -> Dataset:
    maps = ParametricMaps(folder=tmp_path / "maps")
    maps.write(
        intake(tmp_path / "scan"),
        voxels,
        signed=signed,
        name="gradient",
        about="gradient for severe (sound)",
        remark="slope: 1 % off.",
    )
    (path,) = (tmp_path / "maps").iterdir()
    return pydicom.dcmread(path)


def planes(found: Dataset) -> np.ndarray:
    return np.array(
        [
            item.PlanePositionSequence[0].ImagePositionPatient
            for item in found.PerFrameFunctionalGroupsSequence
        ],
        dtype=float,
    )


def values(found: Dataset) -> np.ndarray:
    shape = (int(found.NumberOfFrames), found.Rows, found.Columns)
    return np.frombuffer(found.FloatPixelData, dtype="<f4").reshape(shape)


class TestGeometry:
    @pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, FEET_FIRST])
    def test_each_frame_lies_on_the_source_plane_whose_values_it_holds(
        self, tmp_path: Path, orientation: tuple[float, ...]
    ) -> None:
        """The map is the scan itself: what is read back must be the scan's slices."""
        source: Scan = write_series(tmp_path / "scan", orientation=orientation, **SHAPE)
        voxels = load_volume(intake(tmp_path / "scan")).voxels
        found = written(tmp_path, voxels)
        shared = found.SharedFunctionalGroupsSequence[0]
        headers = [pydicom.dcmread(path) for path in source.paths]
        assert_array_equal(
            np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float),
            np.array(headers[0].ImageOrientationPatient, dtype=float),
        )
        measures = shared.PixelMeasuresSequence[0]
        assert measures.PixelSpacing == headers[0].PixelSpacing
        assert float(measures.SpacingBetweenSlices) == pytest.approx(3.0)
        places = planes(found)
        assert len(places) == len(headers)
        for header, suv in zip(headers, source.suv, strict=True):
            own = np.array(header.ImagePositionPatient, dtype=float)
            (frame,) = np.flatnonzero(np.abs(places - own).max(axis=1) < 1e-9)
            assert_allclose(values(found)[frame], suv, rtol=2e-7)

    def test_values_come_back_to_the_bit_with_their_sign(self, tmp_path: Path) -> None:
        write_series(tmp_path / "scan", **SHAPE)
        rng = np.random.default_rng(0)
        voxels = rng.normal(size=(5, 6, 7)).astype(np.float32)
        found = written(tmp_path, voxels)
        order = np.argsort(planes(found)[:, 2])
        assert_array_equal(values(found)[order], voxels)
        mapping = found.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
        assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)

    @pytest.mark.parametrize(("signed", "centre"), [(True, 0.0), (False, 2.0)])
    def test_viewers_open_with_the_whole_range(
        self, tmp_path: Path, signed: bool, centre: float
    ) -> None:
        write_series(tmp_path / "scan", **SHAPE)
        found = written(tmp_path, np.full((5, 6, 7), 4, np.float32), signed=signed)
        window = found.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
        assert float(window.WindowCenter) == centre
        assert float(window.WindowWidth) == (8 if signed else 4)

    def test_slices_that_were_missing_stand_between_the_others(self, tmp_path: Path) -> None:
        write_series(tmp_path / "scan", **SHAPE | {"slices": 7})
        (tmp_path / "scan" / "slice003.dcm").unlink()
        (series,) = scan(tmp_path / "scan", pseudonyms=KEY, fill_gaps=1).series
        voxels = load_volume(series).voxels
        frames = frames_of(series, voxels, sources=source_images(series))
        assert len(frames.pixels) == 7
        assert_allclose(np.diff(frames.positions_mm[:, 2]), 3.0)

    def test_an_oblique_scan_keeps_its_place_in_the_patient(self, tmp_path: Path) -> None:
        angle = np.radians(20)
        row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), np.sin(angle)])
        normal = np.cross(row, column)
        n, spot = 20, np.array([3.0, -6.0, 9.0])
        origin = spot - 2.0 * (n / 2 - 0.5) * (row + column + normal)
        k, r, c = np.indices((n, n, n))[..., None]
        places = origin + 2.0 * (k * normal + r * column + c * row)
        blob = 30000 * np.exp(-((places - spot) ** 2).sum(-1) / (2 * 5.0**2))
        write_series(
            tmp_path / "scan",
            spacing=(2.0, 2.0, 2.0),
            orientation=(*row, *column),
            origin=origin,
            stored=blob.astype(np.int16),
        )
        found = written(tmp_path, load_volume(intake(tmp_path / "scan")).voxels)
        frames, rows, columns = np.indices(values(found).shape)
        spacing = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        x, y, z = planes(found)[frames.ravel()].T
        x = x + columns.ravel() * float(spacing[1])
        y = y + rows.ravel() * float(spacing[0])
        weights = values(found).ravel()
        centre = [(axis * weights).sum() / weights.sum() for axis in (x, y, z)]
        assert_allclose(centre, spot, atol=0.2)


class TestIdentifiers:
    @pytest.fixture
    def found(self, tmp_path: Path) -> Dataset:
        write_series(tmp_path / "scan", **SHAPE)
        return written(tmp_path, np.ones((5, 6, 7), np.float32))

    def test_patient_study_and_space_are_the_sources(self, found: Dataset, tmp_path: Path) -> None:
        source = pydicom.dcmread(tmp_path / "scan" / "slice000.dcm")
        for keyword in (
            *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
            *("StudyInstanceUID", "StudyDate", "StudyTime", "FrameOfReferenceUID"),
        ):
            assert found[keyword].value == source[keyword].value, keyword

    def test_series_and_instance_are_new(self, found: Dataset, tmp_path: Path) -> None:
        sources = [pydicom.dcmread(path) for path in (tmp_path / "scan").iterdir()]
        assert found.SeriesInstanceUID != sources[0].SeriesInstanceUID
        assert found.SOPInstanceUID not in {source.SOPInstanceUID for source in sources}
        (tmp_path / "again").mkdir()
        (tmp_path / "scan").rename(tmp_path / "again" / "scan")
        other = written(tmp_path / "again", np.ones((5, 6, 7), np.float32))
        assert other.SeriesInstanceUID != found.SeriesInstanceUID

    def test_no_pseudonym_and_no_path_enters(self, found: Dataset, tmp_path: Path) -> None:
        series = intake(tmp_path / "scan")
        text = str(found)
        for secret in (series.subject_id, series.series_id, series.study_id, str(tmp_path)):
            assert secret[:8] not in text

    def test_it_says_what_it_is(self, found: Dataset) -> None:
        assert found.SeriesDescription == "Explanation: gradient for severe (sound)"
        assert found.ImageComments == "slope: 1 % off. For research; not for diagnosis."
        assert found.ContentQualification == "RESEARCH"
        assert found.file_meta.MediaStorageSOPClassUID.name == "Parametric Map Storage"
        referenced = found.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert len(referenced) == 5

    def test_long_and_foreign_words_fit_the_standard(self, tmp_path: Path) -> None:
        write_series(tmp_path / "scan", **SHAPE)
        series = intake(tmp_path / "scan")
        sources = source_images(series)
        frames = frames_of(series, np.ones((5, 6, 7), np.float32), sources=sources)
        found = parametric_map(
            sources, frames, signed=True, about="α\\β" * 40, remark="γ", number=1
        )
        assert len(found.SeriesDescription) == 64
        assert found.SeriesDescription.startswith("Explanation: ?/?")

    def test_empty_headers_stay_empty(self, tmp_path: Path) -> None:
        def change(header: Dataset, k: int) -> None:
            del header.PatientName, header.PatientBirthDate, header.PatientSex

        write_series(tmp_path / "scan", change=change, **SHAPE)
        found = written(tmp_path, np.ones((5, 6, 7), np.float32))
        assert not found.PatientName
        assert not found.PatientBirthDate
        assert found.PatientID == "CANARY-ID"


class TestRefusals:
    def write(self, tmp_path: Path, series: SeriesIntake, shape: tuple[int, ...]) -> None:
        maps = ParametricMaps(folder=tmp_path / "maps")
        maps.write(
            series, np.ones(shape, np.float32), signed=False, name="m", about="m", remark="m"
        )

    def test_a_map_of_another_volume(self, tmp_path: Path) -> None:
        write_series(tmp_path / "scan", **SHAPE)
        with pytest.raises(DataError, match=r"the map has \(5, 6, 8\) voxels \(z, y, x\)"):
            self.write(tmp_path, intake(tmp_path / "scan"), (5, 6, 8))
        assert not (tmp_path / "maps").exists()

    def test_a_file_that_vanished(self, tmp_path: Path) -> None:
        write_series(tmp_path / "scan", **SHAPE)
        series = intake(tmp_path / "scan")
        (tmp_path / "scan" / "slice002.dcm").unlink()
        with pytest.raises(DataError, match=r"cannot be read again .*start again") as refusal:
            self.write(tmp_path, series, (5, 6, 7))
        assert str(tmp_path) not in str(refusal.value)

    def test_a_series_without_a_frame_of_reference(self, tmp_path: Path) -> None:
        def change(header: Dataset, k: int) -> None:
            del header.FrameOfReferenceUID

        write_series(tmp_path / "scan", change=change, **SHAPE)
        with pytest.raises(DataError, match="has no FrameOfReferenceUID, without which") as refusal:
            self.write(tmp_path, intake(tmp_path / "scan"), (5, 6, 7))
        assert refusal.value.code == "SERIES_UNSUITED"

    def test_a_header_that_breaks_the_standard(self, tmp_path: Path) -> None:
        def change(header: Dataset, k: int) -> None:
            header.PatientSex = "CANARY"

        write_series(tmp_path / "scan", change=change, **SHAPE)
        with pytest.raises(DataError, match="header cannot be carried over") as refusal:
            self.write(tmp_path, intake(tmp_path / "scan"), (5, 6, 7))
        assert "CANARY" not in str(refusal.value)
