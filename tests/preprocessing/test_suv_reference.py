"""SUVbw on scans and objects made by others."""

import json

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from preprocessing.records import Unit, Volume
from preprocessing.suv import check_dose_balance, suvbw
from preprocessing.suv_balance import body_mean, dose_share

DROS = ["0_0", "1_0", "2_0", "2_1", "2_4", "3_0", "3_1", "3_3", "4_0", "4_1"]
DRUG_FIELDS = (
    "RadionuclideTotalDose",
    "RadionuclideHalfLife",
    "RadiopharmaceuticalStartTime",
    "RadiopharmaceuticalStartDateTime",
)


def read_series(folder, *, pixels):
    files = sorted(folder.glob("*.dcm"))
    instances = [pydicom.dcmread(file, stop_before_pixels=not pixels) for file in files]
    return sorted(instances, key=lambda header: header.ImagePositionPatient[2])


def to_suv(instances):
    factors = suvbw(instances).factors
    slices = [
        header.pixel_array * float(header.RescaleSlope) * factor
        for header, factor in zip(instances, factors, strict=True)
    ]
    return np.stack(slices)


@pytest.mark.parametrize("name", DROS)
def test_reference_object_is_recovered(reference_data, name):
    folder = reference_data / "suv_dro" / f"DRO_{name}"
    instances = read_series(folder / "PT", pixels=True)
    mask = np.asarray(nibabel.load(folder / "mask" / "DRO_mask.nii.gz").dataobj)
    suv = to_suv(instances)[mask.transpose(2, 1, 0) > 0]
    steps = [float(header.RescaleSlope) for header in instances] * suvbw(instances).factors
    tolerance = max(0.005, 0.5 * float(np.max(steps)))
    seen = [suv.min(), np.median(suv), suv.max()]
    np.testing.assert_allclose(seen, [0.20, 1.00, 4.00], rtol=0, atol=tolerance)


def test_real_whole_body_crop_agrees_with_an_independent_tool(reference_data):
    instances = read_series(reference_data / "sts_001" / "dicom", pixels=True)[:59]
    expected = np.load(reference_data / "sts_001" / "suvbw_crop.npy", allow_pickle=False)
    suv = to_suv(instances)[:, 45:88, 59:100]
    assert expected.shape == suv.shape
    np.testing.assert_allclose(suv, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("number", range(1, 9))
def test_series_that_hold_suvbw_pass_unscaled(reference_data, number):
    folder = reference_data / "ibsi_sts" / f"STS_{number:03}" / "image"
    result = suvbw(read_series(folder, pixels=False))
    assert set(result.factors) == {1.0}
    assert result.route == "UNITS GML BW"
    assert result.warnings == ()


def from_json(record):
    header, item = Dataset(), Dataset()
    for keyword, value in record.items():
        if keyword == "PhilipsPETPrivateGroup":
            if value:
                block = header.private_block(0x7053, "Philips PET Private Group", create=True)
                block.add_new(0x00, "DS", value["SUVScaleFactor"])
        else:
            setattr(item if keyword in DRUG_FIELDS else header, keyword, value)
    header.RadiopharmaceuticalInformationSequence = Sequence([item])
    return header


@pytest.mark.parametrize(
    "name",
    [
        "SIEMENS",
        "GE_MEDICAL_AND_BQML",
        "PHILIPS_CNTS_AND_SUV",
        "RADIOPHARM_DATETIME_UNDEFINED",
    ],
)
def test_headers_without_manufacturer_give_the_factor_of_an_independent_tool(reference_data, name):
    folder = reference_data / "pet_headers"
    records = json.loads((folder / f"{name}-instances.json").read_text())
    expected = json.loads((folder / "expected_suvbw_factors.json").read_text())["suvbw_factor"]
    factors = suvbw([from_json(record) for record in records]).factors
    np.testing.assert_allclose(factors, expected[name], rtol=0, atol=1e-6)
    np.testing.assert_allclose(factors, expected[name], rtol=1e-3)


def test_a_real_patient_balances_the_dose_and_a_weight_in_pounds_does_not(reference_data):
    instances = read_series(reference_data / "sts_001" / "dicom", pixels=True)
    weight = suvbw(instances).weight_kg
    rows, columns = (float(spacing) for spacing in instances[0].PixelSpacing)
    affine = np.diag([columns, rows, 3.27, 1.0])
    voxels = to_suv(instances).astype(np.float32)
    volume = Volume(voxels=voxels, affine=affine, unit=Unit.SUVBW, subject_id="s")
    assert check_dose_balance(volume, weight_kg=weight) == ()
    assert 0.6 < dose_share(volume, weight_kg=weight) < 0.7
    assert 0.7 < body_mean(volume) < 1.0
    pounds = Volume(
        voxels=voxels * np.float32(2.2046), affine=affine, unit=Unit.SUVBW, subject_id="s"
    )
    (warning,) = check_dose_balance(pounds, weight_kg=weight * 2.2046)
    assert warning.endswith("a weight in pounds read as kg would do this")


def test_headers_shrink_to_nothing_but_the_factor(reference_data):
    """The result of a real series names no date, time or identifier of its header."""
    instances = read_series(reference_data / "sts_001" / "dicom", pixels=False)
    result = suvbw(instances)
    texts = " ".join((result.route, *result.warnings))
    for keyword in ("PatientID", "SeriesInstanceUID", "SeriesDate", "SeriesTime"):
        assert str(instances[0][keyword].value) not in texts
