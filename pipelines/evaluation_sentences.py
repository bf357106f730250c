"""What an evaluation amounts to, in sentences for people who read nothing else.

The figures choose the words: "holds" is written only where both intervals lie above the line.
"""

import math
from collections.abc import Mapping, Sequence

from pipelines.comparison_scores import MeanScore
from pipelines.evaluation_blocks import controls, real
from pipelines.evaluation_cells import (
    Row,
    bare,
    is_upper_bound,
    number,
    signed,
)
from pipelines.evaluation_claims import CLAIMS, HEADLINES, PAPER, ROBUST_CLAIMS
from pipelines.evaluation_findings import Comparison, Finding, absent
from pipelines.evaluation_measures import split_measure, words_of
from pipelines.evaluation_records import Entry, Evaluation
from pipelines.evaluation_verdicts import WORST_FIRST, Word
from pipelines.tabular import EMPTY

PRECISION = "average_precision"
FEW_PATIENTS = 30
MOST_MODELS = 3
"""Models that have a sentence of their own: the page opens with no more than six."""
NAMED: frozenset[Word] = frozenset({"not shown", "does not hold"})
"""Verdicts whose claims are named where the page opens."""
REFUSED_SHARE = 0.1
"""Of an entry's maps: from here on the page opens with it."""
SINGULAR: Mapping[Word, str] = {
    "holds": "holds",
    "holds for these runs only": "holds for these runs only",
    "not shown": "is not shown",
    "does not hold": "does not hold",
    "cannot be said": "cannot be judged",
}
PLURAL: Mapping[Word, str] = {
    "holds": "hold",
    "holds for these runs only": "hold for these runs only",
    "not shown": "are not shown",
    "does not hold": "do not hold",
    "cannot be said": "cannot be judged",
}


def verdict(
    found: Evaluation, made: Sequence[Finding], under_attack: Sequence[Finding] = ()
) -> list[str]:
    """Return a few sentences: what was found, which claims hold, what it is worth.

    Parameters
    ----------
    under_attack
        Claims about robust training and about explanations under attack.
    """
    sentences = [
        _localised(found),
        _accurate(made),
        *_claimed(found, made),
        robust_verdict(under_attack),
        _worth(found),
    ]
    return [text for text in sentences if text]


def robust_verdict(made: Sequence[Finding]) -> str:
    """Count the models that each claim about attacks holds for; "" where nothing was attacked."""
    told = []
    for claim in dict.fromkeys(item.claim for item in made):
        own = [item.verdict for item in made if item.claim == claim]
        counts = [f"{_plural(word, 1)} for {own.count(word)}" for word in _order() if word in own]
        told.append(f"{ROBUST_CLAIMS[claim].short} {_listed(counts)}")
    return f"Under attack, by the number of models: {'; '.join(told)}." if told else EMPTY


def _localised(found: Evaluation) -> str:
    scored = {x.name: _precision(found, x) for x in real(found)}
    scored = {name: value for name, value in scored.items() if math.isfinite(value)}
    if not scored:
        return (
            "No true regions were measured, so nothing is said about whether the maps find the "
            "right place."
        )
    best = max(scored, key=lambda name: scored[name])
    sentence = (
        f"Of {len(scored)} maps, those of '{best}' find the true region best: average precision "
        f"{_with_interval(found.scores[best][PRECISION])}"
    )
    sentence += _refused(found, best)
    blind = {x.name: _precision(found, x) for x in controls(found) if not is_upper_bound(x)}
    blind = {name: value for name, value in blind.items() if math.isfinite(value)}
    if not blind:
        return f"{sentence}."
    top = max(blind, key=lambda name: blind[name])
    share = number(blind[top], PRECISION)
    return f"{sentence}. The best map that knows nothing of a network ('{top}') reaches {share} %."


def _refused(found: Evaluation, entry: str) -> str:
    """Say that many of an entry's maps break what its method promises of them."""
    counts = found.verdicts.get(entry, {})
    share = counts.get("refused", 0) / max(sum(counts.values()), 1)
    if share < REFUSED_SHARE:
        return EMPTY
    return f"; {100 * share:.0f} % of them break what their method promises of every map"


def _precision(found: Evaluation, entry: Entry) -> float:
    score = found.scores.get(entry.name, {}).get(PRECISION)
    return math.nan if score is None else score.mean


def _with_interval(score: MeanScore) -> str:
    mean = f"{number(score.mean, PRECISION)} %"
    low, high = number(score.low, PRECISION), number(score.high, PRECISION)
    return f"{mean} (95 % interval over patients {low} to {high})" if low and high else mean


def _accurate(made: Sequence[Finding]) -> str:
    kept = [item for item in made if item.claim == "accuracy-is-kept"]
    if not kept:
        return EMPTY
    told = [
        f"{_plural(word, 1)} for {_listed([_quoted(x.model) for x in kept if x.verdict == word])}"
        for word in _order()
        if any(item.verdict == word for item in kept)
    ]
    return (
        f"That accuracy is kept, to within one point of the network without gates, {_listed(told)}."
    )


def _first_of_each_variant(found: Evaluation, made: Sequence[Finding]) -> list[str]:
    """Return a model of every variant, trained as it is meant to be, before a second of any."""
    models = [found.models[name] for name in dict.fromkeys(item.model for item in made)]
    models.sort(key=lambda model: model.frozen != (model.variant in PAPER))
    first = {model.variant: model.name for model in reversed(models)}
    names = [model.name for model in models]
    order = [variant for variant in HEADLINES if variant in first]
    return list(dict.fromkeys([*(first[variant] for variant in order), *names]))


def _claimed(found: Evaluation, made: Sequence[Finding]) -> list[str]:
    if not made:
        return [
            "None of the variants that the claims are about was among the runs: nothing can be "
            "said of them."
        ]
    models = _first_of_each_variant(found, made)[:MOST_MODELS]
    sentences = [_of_model(name, [x for x in made if x.model == name]) for name in models]
    missing = absent(found)
    if missing:
        named = _listed([_quoted(name) for name in missing])
        sentences.append(f"Nothing is said of {named}: no run of it was measured.")
    return sentences


def _of_model(model: str, mine: Sequence[Finding]) -> str:
    """Count the claims by verdict, and name those that fail."""
    by_word: dict[Word, list[Finding]] = {
        word: [x for x in mine if x.verdict == word] for word in _order()
    }
    holding = len(by_word.pop("holds"))
    rest = [
        f"; {len(items)} {_plural(word, len(items))}{_named(items) if word in NAMED else EMPTY}"
        for word, items in by_word.items()
        if items
    ]
    count = "all" if holding == len(mine) else str(holding)
    plural = _plural("holds", 1 if holding == 1 else 2)
    return f"Of {len(mine)} claims made of '{model}', {count} {plural}{EMPTY.join(rest)}."


def _named(items: Sequence[Finding]) -> str:
    return f" ({'; '.join(CLAIMS[item.claim].short for item in items)})"


def _quoted(name: str) -> str:
    return f"'{name}'"


def _order() -> list[Word]:
    return list(reversed(WORST_FIRST))


def _plural(word: Word, count: int) -> str:
    return SINGULAR[word] if count == 1 else PLURAL[word]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _worth(found: Evaluation) -> str:
    few = f"only {found.patients}" if found.patients < FEW_PATIENTS else str(found.patients)
    sentence = f"All of it was measured on {found.samples} test pictures of {few} patients"
    if found.synthetic:
        return (
            f"{sentence}, who are phantoms: it shows how the methods compare on computed pictures "
            "and says nothing of people."
        )
    return f"{sentence}; other hospitals and scanners are not covered."


def claim_rows(made: Sequence[Finding]) -> list[Row]:
    """Return the claims for people: a row for each claim, a column of verdicts for each model."""
    models = list(dict.fromkeys(item.model for item in made))
    by_key = {(item.claim, item.model): item for item in made}
    return [
        {
            "claim": CLAIMS[claim].sentence,
            "claimed by": "the paper" if CLAIMS[claim].origin == "paper" else "us",
            **{
                model: by_key[claim, model].verdict if (claim, model) in by_key else EMPTY
                for model in models
            },
        }
        for claim in dict.fromkeys(item.claim for item in made)
    ]


def finding_rows(made: Sequence[Finding]) -> list[Row]:
    """Return each claim of each model with the comparison that its verdict hangs on."""
    return [
        {
            "model": item.model,
            "claim": _sentence(item.claim),
            "verdict": item.verdict,
            "hangs on": told(item.decisive),
            "comparisons": len(item.comparisons),
            "p (Holm)": item.p_holm,
        }
        for item in made
    ]


def _sentence(claim: str) -> str:
    made = CLAIMS[claim] if claim in CLAIMS else ROBUST_CLAIMS[claim]
    return made.sentence


def told(item: Comparison) -> str:
    """Write one comparison: against what, by how much, over patients and over trainings."""
    if item.found is None:
        return item.missing
    found, measure = item.found, item.measure
    metric, fill = split_measure(measure)
    unit = " points" if words_of(metric).percent else EMPTY
    of = f"{words_of(metric).title}, {fill}" if fill else words_of(metric).title
    patients = _interval(found.low, found.high, measure)
    trainings = _interval(found.seeds_low, found.seeds_high, measure)
    parts = [f"patients {patients}"] if patients else []
    parts += [f"{found.seeds} trainings {trainings}"] if trainings else []
    intervals = f" ({'; '.join(parts)})" if parts else EMPTY
    remark = f"; {item.missing}" if item.missing else EMPTY
    return (
        f"{item.subject} against {item.rival}: {signed(found.value, measure)}{unit} of {of}"
        f"{intervals}{remark}"
    )


def _interval(low: float, high: float, measure: str) -> str:
    if not math.isfinite(low + high):
        return EMPTY
    return f"{signed(low, measure)} to {signed(high, measure)}"


def comparison_rows(made: Sequence[Finding]) -> list[Row]:
    """Return every comparison for programs; advantages are positive in favour of the claim."""
    return [
        {
            "claim": item.claim,
            "model": item.model,
            "claim_verdict": item.verdict,
            "claim_p": bare(item.p),
            "claim_p_holm": bare(item.p_holm),
            "subject": comparison.subject,
            "rival": comparison.rival,
            "measure": comparison.measure,
            "verdict": comparison.verdict,
            "missing": comparison.missing,
            **_advantage(comparison),
        }
        for item in made
        for comparison in item.comparisons
    ]


def _advantage(item: Comparison) -> Row:
    names = ("value", "low", "high", "margin", "p", "seeds_mean", "seeds_low", "seeds_high")
    values = [math.nan if item.found is None else getattr(item.found, name) for name in names]
    seeds = 0 if item.found is None else item.found.seeds
    keys = ("advantage", *names[1:])
    return {"seeds": seeds, **{k: bare(v) for k, v in zip(keys, values, strict=True)}}
