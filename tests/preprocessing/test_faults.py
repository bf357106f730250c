"""Faults of the table, pairs of them, and random damage: the right SUV, a note, or a code."""

import errno
import os
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from preprocessing import dicom_pixels
from preprocessing.dicom_series import load_volume
from preprocessing.errors import PreprocessingError
from preprocessing.fdg_pet import Options, Sources, discover
from preprocessing.intake import Intake, SeriesIntake, scan
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Volume
from preprocessing.suv import check_dose_balance
from tests.preprocessing import dicom_factory as factory
from tests.preprocessing.fault_scans import (
    ORIGIN,
    VENDORS,
    Fault,
    Scan,
    beside,
    every,
    in_folder,
    reference,
    written,
)
from tests.preprocessing.faults import TABLE, Expected, Variant, enhanced

KEY = Pseudonyms(bytes(range(32)))
RIGHT = 1e-3
"""Relative error of an SUV that counts as right: what rounding of times in headers may cost."""
JUMP_MM = 1.5
"""Of voxels of 40 mm; a lean that is ignored puts the volume at the mean of its slices."""
SECRETS = ("CANARY", factory.ROOT_UID, "20200304", "19500607")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a folder.

    Attributes
    ----------
    volumes
        Those accepted, with the notes of each.
    codes
        Of all exclusions, those of pixels and of the dose balance included.
    """

    volumes: list[tuple[Volume, frozenset[str]]]
    codes: tuple[str, ...]
    skipped: dict[str, int]
    suv: np.ndarray

    def against(self, expected: Expected) -> str:
        """Return what is otherwise than expected, "" where nothing is."""
        notes = [codes for _, codes in self.volumes]
        seen = f"{[sorted(codes) for codes in notes]} {self.codes} {self.skipped}"
        if self.codes != tuple(sorted(expected.codes)) or self.skipped != dict(expected.skipped):
            return f"codes or skipped files: {seen}"
        if expected.suv == "none":
            return f"accepted: {seen}" if notes else ""
        if len(notes) != 1:
            return f"not one volume: {seen}"
        if expected.suv == "doubted":
            return "" if expected.notes <= notes[0] else f"notes: {seen}"
        if notes[0] != expected.notes:
            return f"notes: {seen}"
        return self.error()

    def error(self) -> str:
        """Return how the accepted volume differs from the scan, "" where it does not."""
        volume = self.volumes[0][0]
        corner = volume.affine[:3, 3]
        if volume.voxels.shape != self.suv.shape:
            return f"shape {volume.voxels.shape}"
        if not np.allclose(volume.voxels, self.suv, rtol=RIGHT):
            return f"SUV is up to {np.max(volume.voxels / np.maximum(self.suv, 1e-9)):.3f} times"
        moved = np.abs(corner - ORIGIN)[:2].max()
        return f"moved by {moved:.3g} mm" if moved > JUMP_MM else ""


def outcome(folder: Path, variant: Variant) -> Outcome:
    """Put a fault into a scan, and take it through intake, conversion and dose balance."""
    made = written_with(folder, variant)
    found = scan(folder, pseudonyms=KEY, **options_of(variant))
    return judged(found, made.suv, folder)


def written_with(folder: Path, *variants: Variant) -> Scan:
    made = reference(variants[0].vendor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom, of values that are to be wrong
        for variant in variants:
            variant.fault(made)
        folder.mkdir(exist_ok=True)
        made.write(folder)
    return made


def options_of(*variants: Variant) -> dict[str, Any]:
    return {name: value for each in variants for name, value in each.options.items()}


def judged(found: Intake, suv: np.ndarray, folder: Path) -> Outcome:
    assert found.seen == found.used + found.excluded + sum(found.skipped.values())
    codes = [each.code for each in found.exclusions]
    shown = f"{found}"
    volumes = []
    for series in found.series:
        if series.status != "accepted":
            continue
        try:
            volume, notes = converted(series)
        except PreprocessingError as error:
            codes.append(error.code)
            shown += str(error)
            continue
        volumes.append((volume, frozenset(note.split(":")[0] for note in notes)))
        shown += " ".join(notes)
    for secret in (*SECRETS, str(folder)):
        assert secret not in shown
    assert all(each.detail for each in found.exclusions)
    return Outcome(
        volumes=volumes, codes=tuple(sorted(codes)), skipped=dict(found.skipped), suv=suv
    )


def converted(series: SeriesIntake) -> tuple[Volume, tuple[str, ...]]:
    volume = load_volume(series)
    assert series.suv is not None
    notes = (*series.warnings, *series.suv.warnings)
    if series.suv.weight_kg is not None:
        notes += check_dose_balance(volume, weight_kg=series.suv.weight_kg)
    return volume, notes


@pytest.mark.parametrize("variant", TABLE, ids=str)
def test_a_single_fault_ends_in_the_right_suv_or_the_right_code(tmp_path, variant):
    assert outcome(tmp_path, variant).against(variant.expected) == ""


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_scan_without_fault_is_right_and_has_no_notes(tmp_path, vendor):
    made = reference(vendor)
    made.write(tmp_path)
    found = judged(scan(tmp_path, pseudonyms=KEY), made.suv, tmp_path)
    assert found.against(Expected(suv="right")) == ""


def test_the_table_is_complete():
    by_row = Counter(variant.row for variant in TABLE)
    assert set(by_row) >= {*range(1, 32), 33}
    assert len({str(variant) for variant in TABLE}) == len(TABLE)


RESCALING = {16, 17, 20}
"""Rows whose faults rewrite slopes: two of them together are another scan, not another header."""


@pytest.mark.parametrize("vendor", VENDORS)
def test_pairs_of_faults_end_in_a_code_a_note_or_the_right_suv(tmp_path, vendor):
    """A fault that cannot be put beside another is passed over; few are."""
    draw = Random(f"pairs of {vendor}")
    variants = [variant for variant in TABLE if variant.vendor == vendor]
    tried = 0
    for k in range(PAIRS_PER_VENDOR):
        pair = draw.sample(variants, 2)
        if {each.row for each in pair} <= RESCALING:
            continue
        folder = tmp_path / f"{k}"
        try:
            made = written_with(folder, *pair)
        except FAULTS_OF_FAULTS:
            continue
        tried += 1
        found = judged(scan(folder, pseudonyms=KEY, **options_of(*pair)), made.suv, folder)
        named = f"{pair[0]} and {pair[1]}"
        assert found.volumes or found.codes or found.skipped or not made.slices, named
        for _, notes in found.volumes:
            assert notes or found.error() == "", named
    assert tried > 0.9 * PAIRS_PER_VENDOR


PAIRS_PER_VENDOR = 80
FAULTS_OF_FAULTS = (ValueError, AttributeError, KeyError, TypeError, IndexError, OSError)
"""What the tools of the table raise where the first fault took away what the second one changes."""

SPLICES = (
    *(b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff", b"\xfe\xff\0\xe0", b"\xfe\xff\xdd\xe0"),
    *(b"\xfe\xff\x0d\xe0", b"SQ", b"UN\0\0", b"\xe0\x7f\x10\0", b"\x08\0\x05\0", b"DS", b"\\"),
    *(b"OB\0\0\xff\xff\xff\xff", b"-", b"9", b"nan", b"\0"),
)
"""Lengths, delimiters, representations and tags."""
ENCODED: dict[str, tuple[str, Fault]] = {
    "explicit": ("GE", in_folder(lambda _: None)),
    "implicit": ("SIEMENS", written(ImplicitVRLittleEndian)),
    "big endian": ("PHILIPS", written(ExplicitVRBigEndian)),
    "deflated": ("GE", written(DeflatedExplicitVRLittleEndian)),
    "run lengths": ("GE", written(RLELossless)),
    "enhanced": ("GE", enhanced()),
}


def mutated(content: bytes, draw: Random) -> bytes:
    """Flip, cut, take out, splice, repeat or overwrite bytes, once to three times."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(changed)), draw.randint(1, 40)
        kind = draw.choice(("flip", "cut", "take out", "splice", "repeat", "overwrite"))
        if kind == "flip":
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del changed[max(at, 1) :]
        elif kind == "take out":
            del changed[max(at, 1) : at + length]
        else:
            piece = draw.choice(SPLICES) if kind != "repeat" else changed[:length]
            changed[at : at + len(piece) * (kind == "overwrite")] = piece
    return bytes(changed)


@pytest.mark.parametrize("encoding", ENCODED)
def test_random_damage_to_a_file_never_ends_in_an_exception(tmp_path, encoding):
    vendor, fault = ENCODED[encoding]
    made = reference(vendor)
    fault(made)
    made.write(tmp_path)
    draw = Random(encoding)
    paths = sorted(tmp_path.glob("*.dcm"))
    for _ in range(60):
        path = draw.choice(paths)
        content = path.read_bytes()
        path.write_bytes(mutated(content, draw))
        found = judged(scan(tmp_path, pseudonyms=KEY), made.suv, tmp_path)
        assert len(found.volumes) + len(found.codes) + len(found.skipped) > 0
        for volume, _ in found.volumes:
            assert np.isfinite(volume.voxels).all()
        path.write_bytes(content)


class TestFilesThatChangeBetweenScanAndConversion:
    """Row 27 and the parts of row 34 that concern reading."""

    @pytest.fixture
    def series(self, tmp_path):
        reference("SIEMENS").write(tmp_path)
        (series,) = scan(tmp_path, pseudonyms=KEY).series
        return series

    def refused(self, series: SeriesIntake, code: str, match: str) -> None:
        with pytest.raises(PreprocessingError, match=match) as refusal:
            load_volume(series)
        assert refusal.value.code == code

    def test_gone(self, series):
        series.instances[3].path.unlink()
        self.refused(series, "UNREADABLE", "cannot be read any more")

    def test_replaced_by_a_link(self, series):
        path = series.instances[3].path
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))
        self.refused(series, "UNREADABLE", "cannot be read any more")

    def test_cut(self, series):
        path = series.instances[3].path
        path.write_bytes(path.read_bytes()[:-2])
        self.refused(series, "FILE_CHANGED", "changed while the data set was built")

    def test_written_anew(self, series):
        path = series.instances[3].path
        os.utime(path, ns=(1, 1))
        self.refused(series, "FILE_CHANGED", "changed while the data set was built")

    @pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ESTALE])
    def test_closed_or_broken_disk(self, series, monkeypatch, error):
        def broken(*_, **__):
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(dicom_pixels, "open_regular", broken)
        self.refused(series, "UNREADABLE", re.escape(os.strerror(error)))


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ENOENT, errno.ELOOP])
def test_a_file_that_cannot_be_read_is_named_and_leaves_a_gap(tmp_path, monkeypatch, error):
    reference("GE").write(tmp_path)
    real = os.open

    def failing(path, *rest, **more):
        if str(path).endswith("003.dcm"):
            raise OSError(error, os.strerror(error))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", failing)
    found = scan(tmp_path, pseudonyms=KEY)
    assert sorted(each.code for each in found.exclusions) == ["GAP", "UNREADABLE"]
    assert os.strerror(error) in " ".join(each.detail for each in found.exclusions)


def test_two_identifiers_of_one_person_become_one_subject(tmp_path):
    """Row 32, and row 31: what is known to be one person is one subject of the split."""
    table = tmp_path / "map.csv"
    table.write_text("PatientID,same_as\nB,CANARY-ID\n")
    made = reference("GE")
    beside("GE", every(PatientID="B", StudyInstanceUID="1.2.8", SeriesInstanceUID="1.2.9"))(made)
    made.write(tmp_path / "scans")
    for known, subjects in ((None, 2), (table, 1)):
        sources = Sources(dicom_dir=tmp_path / "scans", patient_map=known)
        found = discover(sources, Options(), pseudonyms=KEY)
        assert len({case.subject_id for case in found.cases}) == subjects
