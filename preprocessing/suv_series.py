"""The instances of one series seen as columns: one attribute over all slices, each value read once.

A whole-body series repeats the same header some three hundred times. A column compares the texts
as they stand in the files and converts each distinct text a single time.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from preprocessing.dicom_values import (
    SECONDS_PER_DAY,
    attribute_name,
    element_text,
    parse_date,
    parse_datetime,
    parse_decimal,
    parse_offset,
    parse_time,
    private_tag,
    read_items,
    stored_element,
    tag_of,
)
from preprocessing.errors import HeaderError

DATE_FALLBACKS = ("AcquisitionDate", "SeriesDate", "StudyDate", "ContentDate")
"""Where a date is missing, the next of these that is present dates the time of day."""


class Notes:
    """Warnings of one conversion in the order they arose, each once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, code: str, text: str) -> None:
        """Keep ``CODE: text`` unless it is there already."""
        line = f"{code}: {text}"
        if line not in self._lines:
            self._lines.append(line)

    def lines(self) -> tuple[str, ...]:
        """Return all warnings."""
        return tuple(self._lines)


def convert_distinct(
    texts: Sequence[str], convert: Callable[[str], float]
) -> Float64[np.ndarray, " n"]:
    """Return ``convert(text)`` for every text, NaN for empty ones, calling once per distinct text.

    Parameters
    ----------
    texts
        One per slice.
    convert
        Reads a non-empty text, or raises ``HeaderError``.
    """
    numbers = {text: convert(text) if text else np.nan for text in set(texts)}
    return np.array([numbers[text] for text in texts], dtype=np.float64)


class SeriesColumns:
    """Columns over the instances of one series, in the order given.

    Parameters
    ----------
    instances
        Headers of one series; pixels are not needed.

    Raises
    ------
    HeaderError
        ``SERIES_EMPTY`` if there is no instance.
    """

    def __init__(self, instances: Sequence[Dataset]) -> None:
        self.instances = list(instances)
        if not self.instances:
            raise HeaderError("SERIES_EMPTY", "the series holds no instance: nothing to convert")
        self._texts: dict[str | BaseTag, list[str]] = {}

    def __len__(self) -> int:
        return len(self.instances)

    def texts(self, attribute: str | BaseTag) -> list[str]:
        """Return the attribute of every slice as text, ``""`` where absent or empty."""
        known = self._texts.get(attribute)
        if known is None:
            tag = tag_of(attribute) if isinstance(attribute, str) else attribute
            known = self._texts[attribute] = _column(self.instances, tag)
        return known

    def text(self, attribute: str) -> str:
        """Return the one text that all slices agree on, upper case and without padding.

        Raises
        ------
        HeaderError
            ``INCONSISTENT_<KEYWORD>`` if the slices disagree.
        """
        distinct = {text.upper() for text in self.texts(attribute)}
        if len(distinct) > 1:
            raise inconsistent(attribute, len(distinct))
        return distinct.pop()

    def number_text(self, attribute: str) -> str:
        """Return ``text`` of a number: ``70`` and ``70.0`` agree.

        Raises
        ------
        HeaderError
            ``INCONSISTENT_<KEYWORD>`` if the slices disagree, or do not all hold a number.
        """
        texts = sorted(set(self.texts(attribute)))
        if len(texts) == 1:
            return texts[0].upper()
        code, name = f"INCONSISTENT_{attribute.upper()}", attribute_name(attribute)
        if len({parse_decimal(text, name=name, code=code) for text in texts}) > 1:
            raise inconsistent(attribute, len(texts))
        return texts[0]

    def decimals(self, attribute: str | BaseTag, *, code: str) -> Float64[np.ndarray, " n"]:
        """Return the decimal of every slice, NaN where absent or empty.

        Raises
        ------
        HeaderError
            ``code``, if a value is not one finite decimal.
        """
        name = attribute_name(attribute)
        return convert_distinct(
            self.texts(attribute), lambda text: parse_decimal(text, name=name, code=code)
        )

    def decimal(self, attribute: str, *, code: str) -> float | None:
        """Return the one decimal that all slices agree on, ``None`` where absent or empty.

        Raises
        ------
        HeaderError
            ``INCONSISTENT_<KEYWORD>`` if slices disagree; ``code`` if it is no finite decimal.
        """
        if not any(self.texts(attribute)):
            return None
        values = self.decimals(attribute, code=code)
        if np.any(values != values[0]):  # also true where only some slices hold it
            raise inconsistent(attribute, len(np.unique(values)))
        return float(values[0])

    def utc_offset(self) -> float | None:
        """Return TimezoneOffsetFromUTC (0008,0201) in seconds, ``None`` where absent.

        Raises
        ------
        HeaderError
            ``TIME_INVALID`` if it is no offset; ``INCONSISTENT_TIMEZONEOFFSETFROMUTC``.
        """
        keyword = "TimezoneOffsetFromUTC"
        text = self.text(keyword)
        return parse_offset(text, name=attribute_name(keyword)) if text else None

    def datetimes(self, attribute: str | BaseTag) -> Float64[np.ndarray, " n"]:
        """Return a DT attribute of every slice in seconds, NaN where absent or empty."""
        name, offset = attribute_name(attribute), self.utc_offset()
        return convert_distinct(
            self.texts(attribute),
            lambda text: parse_datetime(text, name=name, utc_offset_s=offset),
        )

    def moments(self, date_keyword: str, time_keyword: str) -> Float64[np.ndarray, " n"]:
        """Return date + time of every slice in seconds, NaN where the time is absent.

        An absent date is taken from the next attribute of ``DATE_FALLBACKS``; where there is none
        at all the day is 0 for every attribute, so that times of day can still be subtracted.
        """
        name = attribute_name(time_keyword)
        seconds = convert_distinct(
            self.texts(time_keyword), lambda text: parse_time(text, name=name)
        )
        if np.isnan(seconds).all():
            return seconds
        return seconds + self._days(date_keyword)

    def _days(self, keyword: str) -> Float64[np.ndarray, " n"]:
        days = np.full(len(self), np.nan)
        for candidate in dict.fromkeys((keyword, *DATE_FALLBACKS)):
            if not np.isnan(days).any():
                break
            name = attribute_name(candidate)
            found = convert_distinct(
                self.texts(candidate), lambda text, name=name: parse_date(text, name=name)
            )
            days = np.where(np.isnan(days), found, days)
        return np.nan_to_num(days, nan=0.0)

    def has_date(self) -> bool:
        """Say whether any attribute dates the series."""
        return any(any(self.texts(keyword)) for keyword in DATE_FALLBACKS)

    def private(
        self, group: int, element: int, *, creator: str, allow_bare: bool = True
    ) -> tuple[BaseTag, bool] | None:
        """Find a private element in the first slice; see ``dicom_values.private_tag``."""
        return private_tag(
            self.instances[0], group, element, creator=creator, allow_bare=allow_bare
        )

    def private_column(
        self, group: int, element: int, *, creator: str
    ) -> tuple[BaseTag, bool, list[str]] | None:
        """Return a private element of every slice, each in the block that its creator reserved.

        Returns
        -------
        tuple or None
            Tag in the first slice that has it, whether its creator names it there, and the texts;
            ``None`` where no slice has it.
        """
        found = [private_tag(item, group, element, creator=creator) for item in self.instances]
        first = next(filter(None, found), None)
        if first is None:
            return None
        pairs = zip(self.instances, found, strict=True)
        return (*first, [element_text(item, place[0]) if place else "" for item, place in pairs])

    def items(self, attribute: str) -> list[list[Dataset]]:
        """Return the distinct item lists of a sequence over the slices.

        Slices that hold the sequence as the same bytes count once. A sequence of undefined length
        is parsed by pydicom in every slice and given back for every slice.

        Raises
        ------
        HeaderError
            ``PARSE_ERROR`` if the bytes of a sequence cannot be parsed.
        """
        tag = tag_of(attribute)
        lists: list[list[Dataset]] = []
        raw_seen: set[bytes] = set()
        for instance in self.instances:
            element = stored_element(instance, tag)
            if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
                if element.value in raw_seen:
                    continue
                raw_seen.add(element.value)
            lists.append(read_items(instance, tag))
        return lists


def _column(instances: Sequence[Dataset], tag: BaseTag) -> list[str]:
    """Return ``element_text`` of every instance, called once per distinct raw value."""
    texts: list[str] = []
    known: dict[tuple[str | None, bytes | None, bool], str] = {}
    for instance in instances:
        element = stored_element(instance, tag)
        if element is None:
            texts.append("")
        elif isinstance(element, RawDataElement):
            key = element.VR, element.value, element.is_little_endian
            text = known.get(key)
            if text is None:
                text = known[key] = element_text(instance, tag)
            texts.append(text)
        else:
            texts.append(element_text(instance, tag))
    return texts


def inconsistent(attribute: str, count: int) -> HeaderError:
    """Return the refusal of a series whose slices disagree on one attribute."""
    return HeaderError(
        f"INCONSISTENT_{attribute.upper()}",
        f"{attribute_name(attribute)} has {count} different values inside one series: slices of "
        "different scans or patients are mixed; separate them",
    )


def to_days(seconds: float) -> tuple[float, float]:
    """Split an instant into its midnight and the seconds since then."""
    day = np.floor(seconds / SECONDS_PER_DAY) * SECONDS_PER_DAY
    return float(day), float(seconds - day)


def private_name(tag: BaseTag) -> str:
    """Return a private tag as ``(0009,100D)``."""
    return attribute_name(Tag(tag))
