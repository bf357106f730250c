"""The demo's report: one HTML page that says what was run, what came out, and what that is worth.

The sentences are chosen by the figures: an interval that holds the value of guessing is reported as
"not shown", however high the estimate is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from pipelines.figures import Estimate, bars
from pipelines.pages import CaseView, Row, render

RESAMPLES = 9999
CONTROLS = ("uniform", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How well the maps of one method find the true region, beside two maps that know nothing.

    All are average precision over the pixels of the picture, one per sample; NaN where a sample has
    no true region. Higher is better.

    Attributes
    ----------
    method
        Name of the explainer.
    subject_ids
        Pseudonym of each sample's patient: samples of one patient are one draw of the bootstrap.
    model
        The method's maps.
    uniform
        A constant map: the share of the picture that the true region takes.
    random
        A map of independent random values.

    Raises
    ------
    ValueError
        If the four do not count the same samples.
    """

    method: str
    subject_ids: tuple[str, ...]
    model: Float64[np.ndarray, " n"]
    uniform: Float64[np.ndarray, " m"]
    random: Float64[np.ndarray, " k"]

    def __post_init__(self) -> None:
        counts = [len(x) for x in (self.subject_ids, self.model, self.uniform, self.random)]
        if len(set(counts)) > 1:
            raise ValueError(
                f"{self.method}: {counts[0]} patients for {counts[1]} maps, {counts[2]} uniform "
                f"and {counts[3]} random controls"
            )

    @property
    def measured(self) -> bool:
        """Whether any sample has a true region."""
        return bool(np.isfinite(self.model - self.uniform + self.random).any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Everything that the report of the demo shows.

    Attributes
    ----------
    ran
        (what, value): commands, seeds, model, versions, durations.
    intake
        Rows of the intake table: what was seen, used, excluded and why.
    contact_sheet, training_curves
        PNG.
    scores
        Test scores with interval and chance; the first is the headline.
    figures
        (title, PNG, caption): confusion, ROC, calibration.
    overlaps
        One per method; the first is the headline.
    gallery
        (heading, case), as chosen by ``pick_cases``.
    chosen_by
        By what figure they were chosen.
    how
        (name, sentence): how each score was obtained.
    """

    ran: Sequence[tuple[str, str]]
    intake: Sequence[Row]
    contact_sheet: bytes
    training_curves: bytes
    scores: Sequence[Estimate]
    figures: Sequence[tuple[str, bytes, str]]
    overlaps: Sequence[Overlap]
    gallery: Sequence[tuple[str, CaseView]]
    chosen_by: str = "the average precision of the first method's map"
    how: Sequence[tuple[str, str]] = ()


def gain(overlap: Overlap, *, control: str = "uniform", seed: int = 0) -> Estimate:
    """Return how much more average precision a method has than a control, per patient.

    The difference is paired within each sample, averaged within each patient, and its mean has a
    95 % percentile interval over resampled patients (NaN below two patients). Chance is 0.

    Raises
    ------
    ValueError
        If the control is unknown or no sample has a true region.
    """
    if control not in CONTROLS:
        raise ValueError(f"unknown control {control!r}; known: {', '.join(CONTROLS)}")
    baseline = overlap.uniform if control == "uniform" else overlap.random
    patients = _patient_means(overlap.subject_ids, overlap.model - baseline)
    if not len(patients):
        raise ValueError(f"{overlap.method}: no sample has a true region to compare maps with")
    low, high = _interval(patients, rng=np.random.default_rng(seed))
    name = f"{overlap.method} minus {control} map"
    return Estimate(name=name, value=float(patients.mean()), low=low, high=high, chance=0.0)


def _patient_means(
    subject_ids: Sequence[str], values: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " patient"]:
    finite = np.isfinite(values)
    _, patient = np.unique(np.asarray(subject_ids, dtype=str)[finite], return_inverse=True)
    return np.bincount(patient, weights=values[finite]) / np.bincount(patient)


def _interval(
    patients: Float64[np.ndarray, " patient"], *, rng: np.random.Generator
) -> tuple[float, float]:
    count = len(patients)
    if count < 2:
        return math.nan, math.nan
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.percentile(draws @ patients / count, (2.5, 97.5))
    return float(low), float(high)


def pick_cases(values: Float64[np.ndarray, " n"]) -> dict[str, int]:
    """Return the indices of the best, the median and the worst of the finite values.

    With fewer than three values the later ones are left out.
    """
    order = np.argsort(-values, kind="stable")
    order = order[np.isfinite(values[order])]
    if not len(order):
        return {}
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    chosen: dict[str, int] = {}
    for name in ("best", "worst", "median"):
        index = int(order[places[name]])
        if index not in chosen.values():
            chosen[name] = index
    return {name: chosen[name] for name in places if name in chosen}


def verdict(scores: Sequence[Estimate], gains: Sequence[Estimate]) -> list[str]:
    """Return one honest sentence per headline figure, whatever the figures are.

    ``scores`` are better than guessing above their ``chance``; ``gains`` above 0.
    """
    sentences = [f"{_figure(item)}: {_against_chance(item)}." for item in scores]
    sentences += [
        f"Gain in average precision, {_figure(item)}: {_against_control(item)}." for item in gains
    ]
    return sentences or ["Nothing was measured."]


def _figure(item: Estimate) -> str:
    interval = (
        f"95 % interval {item.low:.3f} to {item.high:.3f}"
        if math.isfinite(item.low) and math.isfinite(item.high)
        else "no interval"
    )
    return f"{item.name} {item.value:.3f} ({interval})"


def _against_chance(item: Estimate) -> str:
    if item.chance is None:
        return "there is no value of guessing to compare with"
    guess = f"guessing, which gives {item.chance:.3f}"
    return {
        "above": f"better than {guess}",
        "below": f"worse than {guess}",
        "open": f"not shown to differ from {guess}",
    }[_side(item, item.chance)]


def _against_control(item: Estimate) -> str:
    return {
        "above": "the map finds the true region better than this control does",
        "below": "the map finds the true region worse than this control does",
        "open": "not shown that the map finds the true region better than this control does",
    }[_side(item, 0.0)]


def _side(item: Estimate, reference: float) -> str:
    if item.low > reference:
        return "above"
    return "below" if item.high < reference else "open"


def demo_report(demo: Demo, *, seed: int = 0) -> str:
    """Return the demo's report as one self-contained HTML page.

    A method for which no sample has a true region is named as such and compared with nothing.

    Raises
    ------
    ValueError
        If a picture is not a PNG.
    """
    measured = [overlap for overlap in demo.overlaps if overlap.measured]
    gains = [
        gain(overlap, control=control, seed=seed) for overlap in measured for control in CONTROLS
    ]
    return render(
        "report.html",
        title="dualwitness demo",
        demo=demo,
        verdict=verdict(demo.scores[:1], gains[:1]),
        score_rows=[_score_row(item) for item in demo.scores],
        score_bars=bars(demo.scores, title="Scores on the test patients") if demo.scores else None,
        overlap_rows=[_overlap_row(overlap) for overlap in measured],
        unmeasured=[overlap.method for overlap in demo.overlaps if not overlap.measured],
        gain_rows=[{**_score_row(item), "reading": _against_control(item)} for item in gains],
        gain_bars=bars(gains, label="gain in average precision") if gains else None,
        resamples=RESAMPLES,
    )


def _score_row(item: Estimate) -> Row:
    return {
        "figure": item.name,
        "estimate": item.value,
        "95 % from": item.low,
        "to": item.high,
        "guessing": math.nan if item.chance is None else item.chance,
    }


def _overlap_row(overlap: Overlap) -> Row:
    maps = {"model": overlap.model, "uniform": overlap.uniform, "random": overlap.random}
    means = {
        f"{name} map": float(_patient_means(overlap.subject_ids, values).mean())
        for name, values in maps.items()
    }
    patients = len(_patient_means(overlap.subject_ids, overlap.model))
    return {"method": overlap.method, "patients": patients, **means}
