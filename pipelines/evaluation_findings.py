"""Which claims hold: every claim held against every model that it is made of.

A claim is made on each level and with each fill that was measured, and it holds only where every
one of its comparisons does. Its p value is therefore the largest of theirs (an intersection-union
test, which needs no correction within a claim), and Holm's correction counts the claims.

References
----------
Berger, Hsu, Bioequivalence trials, intersection-union tests and equivalence confidence sets,
Statistical Science 11 (1996).
Holm, A simple sequentially rejective multiple test procedure, Scand J Stat 6 (1979).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipelines.comparison_scores import MeanScore, holm
from pipelines.evaluation_cells import PAIR, STANDARD, is_upper_bound, measures_of
from pipelines.evaluation_claims import CLAIMS, HEADLINES, PAPER, Claim
from pipelines.evaluation_measures import higher_is_better, words_of
from pipelines.evaluation_records import Entry, Evaluation, Model
from pipelines.evaluation_verdicts import WORST_FIRST, Advantage, Measured, Word, advantage

OF_TRANSFORMERS = ("self-attention", "rollout")
Rival = tuple[str, Entry | None]
"""What is compared with, and its maps; None where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One subject against one rival.

    Attributes
    ----------
    subject, rival
        Names of entries, or of models; of a rival that is missing, what it would be.
    measure
        With its fill.
    found
        None where something is missing.
    missing
        What, in words; "" where nothing is.
    """

    subject: str
    rival: str
    measure: str
    found: Advantage | None = None
    missing: str = ""

    @property
    def verdict(self) -> Word:
        """Say in a word what it shows."""
        return "cannot be said" if self.found is None else self.found.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim made of one model.

    Attributes
    ----------
    claim
        Its name in ``CLAIMS``.
    model
        Name of the model.
    comparisons
        At least one.
    p_holm
        Of the claim, corrected for the number of claims.
    """

    claim: str
    model: str
    comparisons: tuple[Comparison, ...] = field(repr=False)
    p_holm: float = math.nan

    @property
    def p(self) -> float:
        """Return the largest p value of the comparisons; NaN where one has none."""
        values = [math.nan if item.found is None else item.found.p for item in self.comparisons]
        return max(values) if all(map(math.isfinite, values)) else math.nan

    @property
    def verdict(self) -> Word:
        """Return the worst of the comparisons' verdicts."""
        present = {item.verdict for item in self.comparisons}
        return next(word for word in WORST_FIRST if word in present)

    @property
    def decisive(self) -> Comparison:
        """Return what the verdict hangs on: of the worst, that of the smallest advantage."""
        worst = [item for item in self.comparisons if item.verdict == self.verdict]
        return min(worst, key=lambda x: math.inf if x.found is None else x.found.low)


def findings(found: Evaluation) -> list[Finding]:
    """Hold every claim against every model that it is made of."""
    made = [
        Finding(claim=name, model=model.name, comparisons=tuple(_comparisons(found, claim, model)))
        for variant in HEADLINES
        for model in found.models.values()
        for name, claim in CLAIMS.items()
        if model.variant == variant and variant in claim.subjects
    ]
    corrected = holm([item.p for item in made])
    return [replace(item, p_holm=p) for item, p in zip(made, corrected, strict=True)]


def absent(found: Evaluation) -> list[str]:
    """Return the variants that claims are made of and no run was measured of."""
    present = {model.variant for model in found.models.values()}
    return [variant for variant in ("exact", *PAPER) if variant not in present]


def _comparisons(found: Evaluation, claim: Claim, model: Model) -> list[Comparison]:
    if claim.of_models:
        return [_of_models(found, claim, model, variant) for variant in claim.variants]
    own = own_maps(found, model)
    measures = measures_of(found, (claim.measure,)) or [claim.measure]
    levels = [level for level in PAIR if level in own]
    shown = list(own)[:1] if claim.at_finest else levels if claim.both_levels else levels[:1]
    made = [
        comparison
        for measure in measures
        for level in shown
        for comparison in _of_level(found, claim, model, (level, measure))
    ]
    title = words_of(claim.measure).title
    nothing = f"no maps to compare {title} with were measured"
    return made or [
        Comparison(subject=model.name, rival="", measure=claim.measure, missing=nothing)
    ]


def _of_models(found: Evaluation, claim: Claim, model: Model, variant: str) -> Comparison:
    rival = model_like(found, model, variant)
    theirs = None if rival is None else _of_model(rival, claim.measure)
    name = variant if rival is None else rival.name
    return _comparison(
        claim, claim.measure, (model.name, _of_model(model, claim.measure)), (name, theirs)
    )


def _of_level(
    found: Evaluation, claim: Claim, model: Model, place: tuple[str, str]
) -> Iterator[Comparison]:
    level, measure = place
    subject = own_maps(found, model)[level]
    ours = _measured(found, subject, measure, anywhere=not claim.both_levels)
    for name, rival in _rivals(found, claim, model, level):
        theirs = rival and _measured(found, rival, measure, anywhere=not claim.both_levels)
        yield _comparison(claim, measure, (subject.name, ours), (name, theirs))


def _comparison(
    claim: Claim,
    measure: str,
    subject: tuple[str, Measured | None],
    rival: tuple[str, Measured | None],
) -> Comparison:
    (mine, ours), (other, theirs) = subject, rival
    if ours is None or theirs is None:
        lacking = mine if ours is None else other
        missing = f"{words_of(measure).title} of {lacking} was not measured"
        return Comparison(subject=mine, rival=other, measure=measure, missing=missing)
    found = advantage(ours, theirs, higher_is_better=higher_is_better(measure), margin=claim.margin)
    return Comparison(subject=mine, rival=other, measure=measure, found=found, missing=found.reason)


def _rivals(found: Evaluation, claim: Claim, model: Model, level: str) -> list[Rival]:
    entries = found.entries.values()
    if claim.rivals == "controls":
        blind = [x for x in entries if x.kind == "control" and not is_upper_bound(x)]
        return [(entry.name, entry) for entry in blind]
    if claim.rivals == "post-hoc":
        return _post_hoc(found, claim, model, level)
    on_level = [entry for entry in entries if entry.level in ("", level)]
    if claim.rivals == "transformer":
        theirs = [entry for entry in on_level if entry.method in OF_TRANSFORMERS]
        return [(x.name, x) for x in theirs] or [("a transformer", None)]
    # A gate on one level is compared on that level only.
    variants = [name for name in claim.variants if name not in PAIR or name == level]
    return [_own_rival(found, model, variant, level) for variant in variants]


def _post_hoc(found: Evaluation, claim: Claim, model: Model, level: str) -> list[Rival]:
    """Return maps on the same grid, or on the methods' own grids where the claim asks for that."""
    models = [(name, model_like(found, model, name)) for name in claim.variants]
    named = {item.name for _, item in models if item is not None}
    made = [x for x in found.entries.values() if x.kind == "post-hoc" and x.model in named]
    wanted, instead = ("", PAIR[0]) if claim.at_finest else (level, "")
    has = {entry.method for entry in made if entry.level == wanted}
    theirs = [
        entry for entry in made if entry.level == (wanted if entry.method in has else instead)
    ]
    missing = [f"a method applied to {name}" for name, item in models if item is None]
    return [(x.name, x) for x in theirs] or [(name, None) for name in missing]


def _own_rival(found: Evaluation, model: Model, variant: str, level: str) -> Rival:
    rival = model_like(found, model, variant)
    entry = None if rival is None else own_maps(found, rival).get(level)
    if entry is None and variant == "cvx":
        entry = _made_to_agree(found, model, level)
    return (variant if entry is None else entry.name), entry


def _made_to_agree(found: Evaluation, model: Model, level: str) -> Entry | None:
    """Return the maps of free gates after the program, where no run of ``cvx`` was measured."""
    free = model_like(found, model, "unconstrained")
    named = [] if free is None else [x for x in found.entries.values() if x.model == free.name]
    return next((x for x in named if x.method == "cvx" and x.level == level), None)


def _of_model(model: Model, measure: str) -> Measured | None:
    return _defined(model.name, model.scores.get(measure), model.seeds)


def _measured(found: Evaluation, entry: Entry, measure: str, *, anywhere: bool) -> Measured | None:
    """Return a score of an entry; ``anywhere``, that of its other level where it has none."""
    levels = [
        other
        for other in found.entries.values()
        if (other.model, other.method, other.kind) == (entry.model, entry.method, entry.kind)
    ]
    for item in (entry, *(levels if anywhere else ())):
        score = found.scores.get(item.name, {}).get(measure)
        if score is not None:
            return _defined(entry.name, score, item.seeds)
    return None


def _defined(name: str, score: MeanScore | None, seeds: tuple[int, ...]) -> Measured | None:
    if score is None or not math.isfinite(score.mean):
        return None
    return Measured(name=name, score=score, seeds=seeds)


def own_maps(found: Evaluation, model: Model) -> Mapping[str, Entry]:
    """Return a model's own maps by level."""
    entries = found.entries.values()
    return {x.level: x for x in entries if x.model == model.name and x.kind == "attention"}


def model_like(found: Evaluation, model: Model, variant: str) -> Model | None:
    """Return the model of a variant that is most like another one; of its network, or none.

    One that was trained on the same objective goes before one of standard training.
    """
    same = [
        item
        for item in found.models.values()
        if item.variant == variant
        and item.network == model.network
        and item.objective in (model.objective, STANDARD)
    ]
    return min(
        same,
        key=lambda item: (item.objective != model.objective, item.frozen != model.frozen),
        default=None,
    )
