"""Enhanced PET: one file of many frames to one instance per frame; all that follows is alike.

The functional groups of each frame (shared or its own) are put at the top level of its header,
under the keywords of the standard.

References
----------
DICOM PS3.3 A.58 (Enhanced PET Image IOD), C.7.6.16 (Multi-frame Functional Groups Module).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence
from pydicom.tag import BaseTag

from preprocessing.dicom_file import ENHANCED_PET, FRAMES, SOP_CLASS, Instance
from preprocessing.dicom_values import attribute_name, read_items, tag_of
from preprocessing.errors import FileError, HeaderError
from preprocessing.raw_elements import text, whole

SHARED = tag_of("SharedFunctionalGroupsSequence")
PER_FRAME = tag_of("PerFrameFunctionalGroupsSequence")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "FrameContentSequence": (
        *("FrameAcquisitionDateTime", "FrameReferenceDateTime", "FrameAcquisitionDuration"),
        "TemporalPositionIndex",
    ),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}
"""Functional group -> the attributes that are taken out of it."""
REQUIRED = (
    *("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence"),
    "FrameContentSequence",
)
MAPPING = "RealWorldValueMappingSequence"
FRAME_TYPE = "PETFrameTypeSequence"


def split_frames(instance: Instance) -> tuple[Instance, ...]:
    """Return one instance per frame; a single-frame file comes back as it is.

    Raises
    ------
    FileError
        ``ENHANCED_INCOMPLETE`` where a functional group is missing, or the groups are not as many
        as the frames; ``PARSE_ERROR`` where they cannot be read.
    """
    elements = instance.elements
    frames = whole(elements, FRAMES) or 1
    if text(elements, SOP_CLASS) != ENHANCED_PET:
        if frames > 1:
            raise FileError(
                "ENHANCED_INCOMPLETE",
                f"{attribute_name('NumberOfFrames')} is {frames} in a class of single frames: "
                "where each frame lies is unknown",
            )
        return (instance,)
    try:
        shared, own = read_items(instance.header, SHARED), read_items(instance.header, PER_FRAME)
    except HeaderError as error:
        raise FileError(error.code, str(error)) from None
    if len(own) != frames:
        raise FileError(
            "ENHANCED_INCOMPLETE",
            f"{attribute_name('PerFrameFunctionalGroupsSequence')} has {len(own)} items for "
            f"{frames} frames: where each frame lies is unknown",
        )
    common = {tag: elements[tag] for tag in elements if tag not in {SHARED, PER_FRAME}}
    return tuple(
        replace(instance, frame=i, elements={**common, **_frame(own[i], *shared[:1])})
        for i in range(frames)
    )


def _frame(*places: Dataset) -> dict[BaseTag, RawDataElement]:
    """Collect a frame's attributes; its own groups win over the shared ones."""
    found: dict[BaseTag, RawDataElement] = {}
    for group, keywords in GROUPS.items():
        item = _group(group, places)
        if item is None:
            if group in REQUIRED:
                raise _missing(group)
            continue
        found.update(_kept(item, keywords))
    mapping = next((place for place in places if tag_of(MAPPING) in place), None)
    if mapping is not None:
        found.update(_kept(mapping, (MAPPING,)))
    if mapping is None and tag_of("RescaleSlope") not in found:
        raise _missing("PixelValueTransformationSequence")
    frame_type = _group(FRAME_TYPE, places)
    if frame_type is not None and tag_of("FrameType") in frame_type:
        element = dict(_raws(frame_type, ("FrameType",)))[tag_of("FrameType")]
        found[tag_of("ImageType")] = element._replace(tag=tag_of("ImageType"))
    return found


def _group(name: str, places: tuple[Dataset, ...]) -> Dataset | None:
    for place in places:
        try:
            items = read_items(place, tag_of(name))
        except HeaderError as error:
            raise FileError(error.code, str(error)) from None
        if items:
            return items[0]
    return None


def _kept(item: Dataset, keywords: tuple[str, ...]) -> dict[BaseTag, RawDataElement]:
    return dict(_raws(item, keywords))


def _raws(item: Dataset, keywords: tuple[str, ...]) -> Iterator[tuple[BaseTag, RawDataElement]]:
    for keyword in keywords:
        tag = tag_of(keyword)
        element = item.get_item(tag) if tag in item else None
        if isinstance(element, RawDataElement):
            yield tag, element
        elif element is not None:
            yield tag, _encoded(element)


def _encoded(element: DataElement) -> RawDataElement:
    """Write a sequence back that pydicom parsed at once, as it does those of undefined length."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_sequence(stream, element, ["iso8859"])
    value = stream.getvalue()
    return RawDataElement(element.tag, "SQ", len(value), value, 0, False, True)


def _missing(group: str) -> FileError:
    return FileError(
        "ENHANCED_INCOMPLETE",
        f"a frame has no {attribute_name(group)}, its own or shared: it cannot be placed or scaled",
    )
