"""Several images of one place: copies are dropped, frames of a time series or of gates are refused.

References
----------
DICOM PS3.3 C.8.9.1.1.1 (SeriesType: static, dynamic, gated, whole body).
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from hashlib import blake2b

from preprocessing.dicom_file import Instance
from preprocessing.dicom_geometry import SAME_POSITION_MM, positions_mm
from preprocessing.dicom_pixels import read_stored
from preprocessing.dicom_values import attribute_name, tag_of
from preprocessing.errors import HeaderError
from preprocessing.raw_elements import raw, whole, words

SOP_INSTANCE = tag_of("SOPInstanceUID")
SERIES_TYPE = tag_of("SeriesType")
FRAME_TIMES = tuple(
    tag_of(keyword)
    for keyword in (
        *("FrameReferenceTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime"),
        *("TemporalPositionIdentifier", "TemporalPositionIndex", "FrameReferenceDateTime"),
        *("FrameAcquisitionDateTime", "ActualFrameDuration", "TriggerTime", "NominalInterval"),
    )
)
"""What tells the frames of a dynamic or gated series apart."""
MAY_DIFFER = frozenset(
    tag_of(keyword)
    for keyword in ("SOPInstanceUID", "InstanceNumber", "ImageIndex", "ContentDate", "ContentTime")
)
"""What a copy of an image under another UID may change."""


def drop_duplicates(instances: Sequence[Instance]) -> tuple[list[Instance], tuple[str, ...]]:
    """Drop copies of the same image; keep the first.

    Returns
    -------
    tuple
        The images kept, and a note ``DUP_INSTANCE`` where any was dropped.

    Raises
    ------
    HeaderError
        ``DUP_CONFLICT`` where two images share a ``SOPInstanceUID``, or a position and a time, and
        are not the same.
    """
    by_uid: dict[Hashable, list[Instance]] = defaultdict(list)
    for instance in instances:
        uid = raw(instance.elements, SOP_INSTANCE) or instance.path
        by_uid[uid, instance.frame].append(instance)
    kept = [
        _one_of(copies, frozenset(), "SOPInstanceUID (0008,0018)") for copies in by_uid.values()
    ]
    by_place: dict[Hashable, list[Instance]] = defaultdict(list)
    for instance, place in zip(kept, _places(kept), strict=True):
        times = tuple(raw(instance.elements, tag) for tag in FRAME_TIMES)
        by_place[place, times].append(instance)
    kept = [_one_of(copies, MAY_DIFFER, "position and time") for copies in by_place.values()]
    dropped = len(instances) - len(kept)
    return kept, (f"DUP_INSTANCE: {dropped} identical files dropped",) if dropped else ()


def _one_of(copies: list[Instance], may_differ: frozenset[int], shared: str) -> Instance:
    first = copies[0]
    for other in copies[1:]:
        tags = (first.elements.keys() | other.elements.keys()) - may_differ
        same_header = all(raw(first.elements, tag) == raw(other.elements, tag) for tag in tags)
        if not same_header or _pixel_digest(first) != _pixel_digest(other):
            raise HeaderError(
                "DUP_CONFLICT",
                f"{len(copies)} images have the same {shared} and are not the same: which one is "
                "right is unknown; keep one export",
            )
    return first


def _pixel_digest(instance: Instance) -> bytes:
    return blake2b(read_stored(instance).tobytes(), digest_size=16).digest()


def _places(instances: Sequence[Instance]) -> list[Hashable]:
    places = positions_mm(instances) / SAME_POSITION_MM
    orientations = (raw(each.elements, tag_of("ImageOrientationPatient")) for each in instances)
    return [
        (tuple(place), orientation)
        for place, orientation in zip(
            places.round().astype(int).tolist(), orientations, strict=True
        )
    ]


def check_static(instances: Sequence[Instance]) -> None:
    """Refuse series with several frames per position, and those that say they are dynamic or gated.

    Raises
    ------
    HeaderError
        ``DYNAMIC`` or ``GATED``.
    """
    kind = next(iter(words(instances[0].elements, SERIES_TYPE)), "")
    places = set(_places(instances))
    repeated = len(places) < len(instances)
    gated = kind == "GATED" or (repeated and _has_gates(instances))
    if gated or repeated or kind == "DYNAMIC":
        frames = f"{len(instances)} frames at {len(places)} positions"
        raise HeaderError(
            "GATED" if gated else "DYNAMIC",
            f"{attribute_name('SeriesType')} is {kind or 'absent'}, {frames}: several pictures of "
            "one place are no whole-body scan; export the static reconstruction",
        )


def _has_gates(instances: Sequence[Instance]) -> bool:
    triggers = {raw(each.elements, tag_of("TriggerTime")) for each in instances}
    gates = whole(instances[0].elements, tag_of("NumberOfTimeSlots")) or 1
    return len(triggers) > 1 or gates > 1
