from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import LabelError
from preprocessing.labels import Table, class_index, read_table

CLASSES = ("normal", "mild", "severe")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "PatientID,label\nA,mild\nB,normal\n",
        "label,PatientID\nmild,A\nnormal,B\n",
        "\ufeffPatientID,label\r\nA,mild\r\nB,normal\r\n",
        "PatientID;label\nA;mild\nB;normal\n",
        "PatientID\tlabel\nA\tmild\nB\tnormal",
        " PatientID , age, label \n A ,70, mild\n\n,,\nB,,normal\nB,,normal\n",
    ],
    ids=["plain", "columns-swapped", "bom-crlf", "semicolon", "tab", "spaces-blank-repeated"],
)
def test_every_form_of_a_table_that_people_ship_reads_alike(tmp_path: Path, text: str) -> None:
    table = read_table(written(tmp_path, text), "label")
    assert table == Table(key="PatientID", values={"A": "mild", "B": "normal"})


def test_a_table_by_series_ignores_the_patient(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "SeriesInstanceUID,label\n1.2.3,mild\n"), "label")
    assert table.find(patient_id="A", series_uid="1.2.3") == "mild"
    assert table.find(patient_id="1.2.3", series_uid="A") is None


def test_a_table_does_not_show_its_identifiers(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "PatientID,label\nSECRET,mild\n"), "label")
    assert "SECRET" not in repr(table)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", "TABLE_EMPTY", "the table is empty"),
        ("PatientID,label\n", "TABLE_EMPTY", "a header and no rows"),
        ("name,label\nA,mild\n", "TABLE_COLUMNS", "its header has: name, label"),
        ("PatientID,class\nA,mild\n", "TABLE_COLUMNS", "needs a column PatientID or Series"),
        ("PatientID,label\nA\n", "TABLE_COLUMNS", "row 2 of the table has no PatientID"),
        ("PatientID,label\n ,mild\n", "TABLE_COLUMNS", "row 2 of the table has no PatientID"),
        (
            "PatientID,label\nSECRET,mild\nSECRET,normal\n",
            "TABLE_CONFLICT",
            "row 3 of the table gives label 'normal' .* an earlier row gives 'mild'",
        ),
        (b"PatientID,label\n\xff\xfe,mild\n", "TABLE_UNREADABLE", "is not UTF-8 text"),
    ],
)
def test_a_table_that_cannot_be_used_says_why_and_names_nobody(
    tmp_path: Path, text: str | bytes, code: str, message: str
) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        read_table(written(tmp_path, text), "label")
    assert caught.value.code == code
    assert "SECRET" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="cannot read the table: No such file") as caught:
        read_table(tmp_path / "missing.csv", "label")
    assert caught.value.code == "TABLE_UNREADABLE"


@given(st.sampled_from(CLASSES), st.booleans())
def test_a_class_is_found_in_any_case(name: str, upper: bool) -> None:
    assert CLASSES[class_index(name.upper() if upper else name, CLASSES)] == name


@pytest.mark.parametrize(
    ("value", "message"),
    [("sever", "did you mean 'severe'"), ("2", "none of the classes normal, mild, severe$")],
)
def test_an_unknown_class_is_refused_with_the_nearest(value: str, message: str) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        class_index(value, CLASSES)
    assert caught.value.code == "LABEL_UNKNOWN"
