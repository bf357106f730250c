"""Header-only PET instances as a file reader leaves them: raw elements, nothing converted."""

from datetime import datetime, timedelta

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

SCAN = datetime(2021, 3, 10, 11, 0, 0)
INJECTION = SCAN - timedelta(hours=1)
HALF_LIFE = 6586.2
DOSE = 350e6
WEIGHT = 70.0
DECAYED_FACTOR = WEIGHT * 1000 / (DOSE * 2 ** (-3600 / HALF_LIFE))
ADMIN_FACTOR = WEIGHT * 1000 / DOSE

SERIES = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128",
    "Units": "BQML",
    "DecayCorrection": "START",
    "CorrectedImage": "DECY\\ATTN\\SCAT\\NORM",
    "SeriesDate": f"{SCAN:%Y%m%d}",
    "SeriesTime": f"{SCAN:%H%M%S}",
    "AcquisitionDate": f"{SCAN:%Y%m%d}",
    "AcquisitionTime": f"{SCAN:%H%M%S}",
    "FrameReferenceTime": "60000",
    "ActualFrameDuration": "120000",
    "PatientWeight": "70",
    "PatientSize": "1.75",
    "PatientSex": "M",
}
DRUG = {
    "RadionuclideTotalDose": "350000000",
    "RadionuclideHalfLife": "6586.2",
    "RadiopharmaceuticalStartTime": f"{INJECTION:%H%M%S}",
    "RadiopharmaceuticalStartDateTime": f"{INJECTION:%Y%m%d%H%M%S}",
}
F18 = ("C-111A1", "SRT", "^18^Fluorine")


def put(dataset, keyword, text):
    """Set an attribute to the bytes a file would hold; ``None`` removes it."""
    tag = Tag(tag_for_keyword(keyword))
    if text is None:
        if tag in dataset:
            del dataset[tag]
        return
    put_raw(dataset, tag, dictionary_VR(tag), text.encode("latin-1"))


def put_raw(dataset, tag, representation, value):
    dataset[tag] = RawDataElement(Tag(tag), representation, len(value), value, 0, False, True, True)


def put_private(dataset, group, element, text, *, creator="", block=0x10, representation="DT"):
    if creator:
        put_raw(dataset, Tag(group, block), "LO", creator.encode())
    put_raw(dataset, Tag(group, (block << 8) | element), representation, text.encode())


def coded(value, scheme, meaning):
    item = Dataset()
    put(item, "CodeValue", value)
    put(item, "CodingSchemeDesignator", scheme)
    put(item, "CodeMeaning", meaning)
    return item


def put_items(dataset, keyword, items):
    dataset[Tag(tag_for_keyword(keyword))] = DataElement(
        tag_for_keyword(keyword), "SQ", Sequence(items)
    )


def drug_item(code=F18, **changes):
    item = Dataset()
    for keyword, text in {**DRUG, **changes}.items():
        put(item, keyword, text)
    if code is not None:
        put_items(item, "RadionuclideCodeSequence", [coded(*code)])
    return item


def instance(*, drug=None, code=F18, **changes):
    """One slice: ``SERIES`` with ``changes``, and one radiopharmaceutical item with ``drug``."""
    dataset = Dataset()
    for keyword, text in {**SERIES, **changes}.items():
        put(dataset, keyword, text)
    item = drug_item(code, **(drug or {}))
    put_items(dataset, "RadiopharmaceuticalInformationSequence", [item])
    return dataset


def series(count=3, **changes):
    return [instance(**changes) for _ in range(count)]


def clock(moment):
    """Date and time texts of a moment."""
    return f"{moment:%Y%m%d}", f"{moment:%H%M%S.%f}"
