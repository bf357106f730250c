"""Which claims hold about robust training, and about explanations under attack.

The verdicts are those of ``pipelines.evaluation_findings``: a claim holds only where all of its
comparisons do, and Holm's correction counts the claims made here.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from models.adversarial import OBJECTIVES
from pipelines.comparison_scores import MeanScore, holm
from pipelines.evaluation_claims import ROBUST_CLAIMS, RobustClaim
from pipelines.evaluation_findings import Comparison, Finding
from pipelines.evaluation_measures import higher_is_better, words_of
from pipelines.evaluation_records import Entry, Evaluation, Model, Robustness
from pipelines.evaluation_robust_choice import GRADIENT, MEAN, WORST
from pipelines.evaluation_robust_files import condition
from pipelines.evaluation_runs import STANDARD
from pipelines.evaluation_verdicts import Measured, advantage

ACCURACY = "balanced_accuracy"
MOREAU = "moreaugrad"
NO_RUN = "no such run"
"""Model of a claim that no run was trained for."""
GUARDED = {"l1": "linf", "elastic": "linf", "group": "l2", "l2": "l2"}
"""Fenchel pair of an objective -> the attack that it guards against."""
Side = tuple[str, MeanScore | None, tuple[int, ...]]
"""Name, score and seeds of one side of a comparison."""


def robust_findings(found: Evaluation) -> list[Finding]:
    """Hold every claim about attacks against every model that it is made of."""
    attacked = found.robustness
    if attacked is None:
        return []
    made = [
        finding
        for name, claim in ROBUST_CLAIMS.items()
        for finding in _of_claim(found, attacked, name, claim)
    ]
    corrected = holm([item.p for item in made])
    return [replace(item, p_holm=p) for item, p in zip(made, corrected, strict=True)]


def is_claimed_of(claim: RobustClaim, objective: str) -> bool:
    """Tell whether a claim is made of models that were trained on an objective.

    ``l1`` stands for ``l1-iterative`` and ``l1-penalty`` too, ``pgd`` for ``pgd-l2``.
    """
    plain = objective.partition("-")[0]
    return not claim.objectives or plain in claim.objectives


def _of_claim(
    found: Evaluation, attacked: Robustness, name: str, claim: RobustClaim
) -> Iterator[Finding]:
    models = [x for x in found.models.values() if is_claimed_of(claim, x.objective)]
    made = [
        Finding(claim=name, model=model.name, comparisons=tuple(comparisons))
        for model in models
        if (comparisons := list(_comparisons(found, attacked, claim, model)))
    ]
    if made:
        yield from made
        return
    missing = "no run that the claim is about was measured under attack"
    lacking = Comparison(subject=NO_RUN, rival="", measure=claim.measures[0], missing=missing)
    yield Finding(claim=name, model=NO_RUN, comparisons=(lacking,))


def _comparisons(
    found: Evaluation, attacked: Robustness, claim: RobustClaim, model: Model
) -> Iterator[Comparison]:
    if claim.about == "methods":
        yield from _of_methods(attacked, claim, model)
        return
    usual = usual_like(found, model)
    if claim.about == "predictions":
        measure = f"{claim.measures[0]}@{guarded(model.objective)}:{MEAN}"
        yield _comparison(
            measure, _predicted(attacked, model, measure), _predicted(attacked, usual, measure)
        )
        return
    for measure in claim.measures:
        yield _comparison(
            measure, _gradient(attacked, model, measure), _gradient(attacked, usual, measure)
        )
    if claim.margin is not None:
        yield _comparison(ACCURACY, _clean(model), _clean(usual), margin=claim.margin)


def guarded(objective: str) -> str:
    """Name the attack on predictions that an objective guards against."""
    return GUARDED[OBJECTIVES[objective].pair]


def usual_like(found: Evaluation, model: Model) -> Model | None:
    """Return the model that differs from another one in standard training only, or nearly."""
    same = [
        x
        for x in found.models.values()
        if (x.variant, x.network, x.objective) == (model.variant, model.network, STANDARD)
    ]
    return min(same, key=lambda x: x.frozen != model.frozen, default=None)


def _of_methods(attacked: Robustness, claim: RobustClaim, model: Model) -> Iterator[Comparison]:
    """Compare MoreauGrad with the gradient of one model; nothing where it has no MoreauGrad."""
    own = {x.method: x for x in attacked.entries.values() if x.model == model.name}
    if MOREAU not in own or not attacked.radii:
        return
    for radius in attacked.radii:
        measure = f"{claim.measures[0]}@{condition(WORST, radius)}"
        rival = own.get(GRADIENT)
        yield _comparison(
            measure,
            _mapped(attacked, own[MOREAU], measure),
            (f"{model.name} {GRADIENT}", None, ())
            if rival is None
            else _mapped(attacked, rival, measure),
        )


def _mapped(attacked: Robustness, entry: Entry, measure: str) -> Side:
    return entry.name, attacked.scores[entry.name].get(measure), entry.seeds


def _gradient(attacked: Robustness, model: Model | None, measure: str) -> Side:
    if model is None:
        return f"{GRADIENT} of the network trained as usual", None, ()
    entry = attacked.entries.get(f"{model.name} {GRADIENT}")
    if entry is None:
        return f"{model.name} {GRADIENT}", None, ()
    return _mapped(attacked, entry, measure)


def _predicted(attacked: Robustness, model: Model | None, measure: str) -> Side:
    if model is None:
        return "the network trained as usual", None, ()
    score = attacked.predictions.get(model.name, {}).get(measure)
    return model.name, score, model.seeds


def _clean(model: Model | None) -> Side:
    if model is None:
        return "the network trained as usual", None, ()
    return model.name, model.scores.get(ACCURACY), model.seeds


def _comparison(measure: str, subject: Side, rival: Side, *, margin: float = 0.0) -> Comparison:
    ours, theirs = _measured(subject), _measured(rival)
    if ours is None or theirs is None:
        lacking = subject[0] if ours is None else rival[0]
        missing = f"{words_of(measure).title} of {lacking} was not measured"
        return Comparison(subject=subject[0], rival=rival[0], measure=measure, missing=missing)
    found = advantage(ours, theirs, higher_is_better=higher_is_better(measure), margin=margin)
    return Comparison(
        subject=subject[0], rival=rival[0], measure=measure, found=found, missing=found.reason
    )


def _measured(side: Side) -> Measured | None:
    name, score, seeds = side
    if score is None or not math.isfinite(score.mean):
        return None
    return Measured(name=name, score=score, seeds=seeds)
