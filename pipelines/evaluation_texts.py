"""What an evaluation's page says besides its numbers: data, measures, statistics, limits."""

from collections.abc import Mapping

from pipelines.evaluation_blocks import controls
from pipelines.evaluation_cells import Row, seeds_text
from pipelines.evaluation_measures import (
    WORDS,
    higher_is_better,
    source_of,
    split_measure,
    words_of,
)
from pipelines.evaluation_records import Evaluation
from pipelines.evaluation_sentences import FEW_PATIENTS
from pipelines.published import PAPER, PUBLISHED

Named = tuple[str, str]
"""A term and its sentence."""
CONTROL_WORDS: Mapping[str, str] = {
    "random": "independent random values",
    "uniform": "the same value everywhere",
    "gaussian": "a bell in the middle of the picture",
    "mean": "the mean of the true regions of the training patients",
    "edge": "the edges of the picture itself",
    "true": "the true region itself, which no map can beat in localisation",
}
"""How the name of a control begins -> what it is."""


def measured(found: Evaluation) -> list[Named]:
    """Say what went into the numbers."""
    rows, columns = found.picture_size
    kind = "phantoms" if found.synthetic else "scans of people"
    blind = [f"{x.method}: {_control(x.method)}" for x in controls(found)]
    return [
        ("Data", f"{found.recipe}, {kind}; classes: {', '.join(found.classes)}."),
        (
            "Test pictures",
            f"{found.samples} of {found.patients} patients, none of whom took part in training or "
            f"in any choice; {rows} x {columns} pixels. {_removed(found)}",
        ),
        ("Models", f"{len(found.models)}, with {_runs(found)} trained networks in all."),
        ("Controls", f"{'; '.join(blind)}." if blind else "None was measured."),
    ]


def _removed(found: Evaluation) -> str:
    if not found.scored:
        return "No pixels were removed."
    return f"Pixels were removed from {found.scored} of the pictures."


def _control(method: str) -> str:
    return next(
        (text for begin, text in CONTROL_WORDS.items() if method.startswith(begin)),
        "a map that no network made",
    )


def _runs(found: Evaluation) -> int:
    return sum(len(model.seeds) for model in found.models.values())


def how(found: Evaluation) -> list[Row]:
    """Return every measure that is in the tables: how it is defined and read, and its source."""
    scores = [*found.scores.values(), *(model.scores for model in found.models.values())]
    if found.robustness is not None:
        scores += [*found.robustness.predictions.values(), *found.robustness.scores.values()]
    present = {split_measure(name)[0] for mine in scores for name in mine}
    ordered = [*(name for name in WORDS if name in present), *sorted(present - set(WORDS))]
    return [
        {
            "measure": words_of(name).title,
            "definition": words_of(name).definition,
            "better": "higher" if higher_is_better(name) else "lower",
            "source": source_of(name),
        }
        for name in ordered
    ]


def statistics(found: Evaluation) -> list[Named]:
    """Say what the intervals hold, and what they do not."""
    return [
        (
            "± and seeds",
            "Standard deviation over networks trained with different seeds: how much training "
            "again changes a number.",
        ),
        (
            "Intervals in square brackets",
            f"The middle 95 % of {found.resamples} resamples of whole patients, never of single "
            "pictures; the same resamples for every entry, and the seeds averaged inside each. "
            "They hold the choice of patients and not the spread of training.",
        ),
        (
            "Differences",
            "Paired inside each resample, so that what is hard for all methods cancels. p values "
            "are two-sided, and corrected by Holm for all entries within one measure; intervals "
            "are not corrected.",
        ),
        (
            "Claims",
            "A claim is one test: it holds where it holds against each of its rivals, so its p "
            "value is the largest of theirs. Claims of 'no worse' allow the margin that they name.",
        ),
        (
            "Not defined",
            "An empty cell. A picture without a true region has no localisation, a model with one "
            "level no agreement. Empty cells are never counted as zero.",
        ),
    ]


def limits(found: Evaluation) -> list[str]:
    """Say what the numbers cannot tell, as far as the evaluation knows it."""
    texts = []
    if found.patients < FEW_PATIENTS:
        texts.append(
            f"Only {found.patients} test patients: intervals are too narrow rather than too wide."
        )
    if found.synthetic:
        texts.append(
            "Phantoms have lesions that were drawn: how often and where they differ from disease "
            "is not covered by any interval here."
        )
    if any(len(model.seeds) < 2 for model in found.models.values()):
        texts.append(
            "Some models were trained once: nothing is known of what training again would change."
        )
    texts += [
        "Pictures with removed pixels look like nothing that the judging network was trained on; "
        "part of what the curves show is how it takes to such pictures. What stands for a removed "
        "pixel changes the answer: compare the fills.",
        "Finding the true region and telling what the network uses are two things. A network may "
        "use something else than the lesion, and a faithful map then misses it.",
        "The seeds share one split of the patients: the interval over trainings does not hold "
        "another split.",
        *found.notes,
    ]
    if found.recipe in PUBLISHED:
        texts.append(
            f"Published values are those of {PAPER}, on other data, other picture sizes and other "
            "training: they show the paper's order of methods and are no yardstick for these."
        )
    return list(dict.fromkeys(texts))  # the record's notes may say the same


def runs(found: Evaluation) -> list[Row]:
    """Return every model with its seeds."""
    return [
        {
            "model": model.name,
            "variant": model.variant,
            "network": model.network,
            "trunk": "as another run left it" if model.frozen else "trained",
            "objective": model.objective,
            "seeds": seeds_text(model.seeds),
            "parameters": f"{model.parameters:,}",
        }
        for model in found.models.values()
    ]


def failures(found: Evaluation) -> list[Row]:
    """Return what could not be measured, and why."""
    return [{"what": name, "why": reason} for name, reason in found.failures.items()]


def laws(found: Evaluation) -> list[Row]:
    """Count, of methods with a law that can be measured, the maps that keep it."""
    words = ("sound", "doubtful", "refused")
    return [
        {"maps": name, **{word: counts.get(word, 0) for word in words}}
        for name, counts in found.verdicts.items()
        if sum(counts.values())
    ]


def no_cases(found: Evaluation, *, asked: bool) -> str:
    """Say why no case is shown."""
    scored = any("average_precision" in mine for mine in found.scores.values())
    if not asked:
        return "No cases: pictures were not asked for."
    if not scored:
        return "No cases: without true regions none is best or worst."
    return "No cases: no scores per picture were found beside this page."
