"""Several routes to one SUV: which is believed, and what a disagreement between them costs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from preprocessing.errors import HeaderError
from preprocessing.suv_series import Notes

TREF_TOLERANCE_S = 2.0
"""Slices of one series refer to one instant; beds round to the second."""
ROUTE_WARNING = 0.01
ROUTE_REFUSAL = 0.05

PRIVATE_ROUTE = "private"
ACQUISITION_ROUTE = "acquisition"
SERIES_ROUTE = "series"
DECAY_ROUTE = "decay-correction"
TIME_ROUTES = (PRIVATE_ROUTE, ACQUISITION_ROUTE, SERIES_ROUTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRoute:
    """One way to the instant that the picture is corrected to.

    Attributes
    ----------
    label
        Readable, with the attributes used.
    seconds
        The instant as each slice gives it.
    """

    label: str
    seconds: Float64[np.ndarray, " n"]

    def spread_s(self) -> float:
        """Return how far the slices disagree, in seconds."""
        return float(np.ptp(self.seconds))

    def instant(self) -> float:
        """Return the instant common to all slices."""
        return float(np.median(self.seconds))


def choose_route(
    routes: Mapping[str, TimeRoute], *, half_life_s: float, prefer: str, notes: Notes
) -> TimeRoute:
    """Return the route to believe, after it was compared with all others.

    The first route is believed. Another that contradicts it by more than 1 % in SUV is noted, by
    more than 5 % it refuses the series, unless ``prefer`` names the route to believe, or a third
    route confirms the believed one. SeriesTime alone is believed only where ``prefer`` names it: no
    attribute tells whether it was rewritten.

    Raises
    ------
    HeaderError
        ``SCAN_TIME_MISSING`` without a route; ``SUV_TREF_INCONSISTENT`` where the slices disagree
        by more than 2 s; ``ROUTE_CONFLICT``.
    """
    if not routes or (SERIES_ROUTE == next(iter(routes)) != prefer):
        raise HeaderError(
            "SCAN_TIME_MISSING",
            "the start of the scan is unknown: AcquisitionTime (0008,0032) is missing, or differs "
            "from SeriesTime (0008,0031) without FrameReferenceTime (0054,1300) and "
            "ActualFrameDuration (0018,1242) to count back with; export the times, or name the "
            "route 'series' to believe SeriesTime",
        )
    name = prefer if prefer in routes else next(iter(routes))
    if prefer in TIME_ROUTES and prefer != name:
        notes.add("ROUTE_UNAVAILABLE", f"the route '{prefer}' cannot be followed; '{name}' is used")
    chosen = routes[name]
    if chosen.spread_s() > TREF_TOLERANCE_S:
        raise HeaderError(
            "SUV_TREF_INCONSISTENT",
            f"by the {chosen.label} the slices refer to instants {chosen.spread_s():.1f} s apart, "
            f"more than {TREF_TOLERANCE_S:g} s: they do not belong to one scan, or the times "
            f"were altered; name another route to believe ({_listed(routes, name)})",
        )
    _compare(routes, name, half_life_s, preferred=name == prefer, notes=notes)
    return chosen


def _listed(routes: Mapping[str, TimeRoute], name: str) -> str:
    return ", ".join(_others(routes, name)) or "there is none"


def _others(routes: Mapping[str, TimeRoute], name: str) -> list[str]:
    return [other for other in routes if other != name]


def _compare(
    routes: Mapping[str, TimeRoute],
    name: str,
    half_life_s: float,
    *,
    preferred: bool,
    notes: Notes,
) -> None:
    chosen, differences = routes[name], {}
    for other in _others(routes, name):
        route = routes[other]
        if route.spread_s() > TREF_TOLERANCE_S:
            notes.add(
                "ROUTE_UNUSABLE", f"by the {route.label} the slices refer to several instants"
            )
            continue
        apart = abs(route.instant() - chosen.instant()) / half_life_s
        differences[other] = float(np.exp2(min(apart, 1000.0)) - 1)
    confirmed = any(difference <= ROUTE_WARNING for difference in differences.values())
    for other, difference in differences.items():
        judge_difference(
            (chosen.label, routes[other].label),
            difference,
            prefer_names=(name, other),
            settled=preferred or confirmed,
            notes=notes,
        )


def judge_difference(
    labels: tuple[str, str],
    difference: float,
    *,
    prefer_names: tuple[str, str],
    settled: bool,
    notes: Notes,
) -> None:
    """Note or refuse two routes that disagree.

    Parameters
    ----------
    labels
        The route believed, and the other.
    difference
        Relative difference in SUV.
    prefer_names
        What a user may name to believe either.
    settled
        The user named the route, or a third one confirms it: note only.
    notes
        Takes the warning.

    Raises
    ------
    HeaderError
        ``ROUTE_CONFLICT`` above 5 % unless settled.
    """
    if difference <= ROUTE_WARNING:
        return
    amount = f"{100 * difference:.1f} %" if difference < 10 else "more than tenfold"
    text = f"SUV by the {labels[0]} and by the {labels[1]} differ by {amount}"
    if difference > ROUTE_REFUSAL and not settled:
        raise HeaderError(
            "ROUTE_CONFLICT",
            f"{text}: one of them is wrong; name the route to believe "
            f"({prefer_names[0]} or {prefer_names[1]})",
        )
    notes.add("ROUTE_DIFFERENCE", f"{text}; the former is used")
