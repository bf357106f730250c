"""The part of an evaluation's page about attacks on predictions and on explanations."""

from collections.abc import Mapping, Sequence

from pipelines.evaluation_findings import Finding
from pipelines.evaluation_gallery import Group
from pipelines.evaluation_records import Evaluation, MaskingCheck, Robustness
from pipelines.evaluation_robust_figures import ACCURACY, GRADIENTS, METHODS, SPARSITY
from pipelines.evaluation_robust_tables import ROBUST_TABLES
from pipelines.evaluation_sections import NamedFigure, NamedTable, Section
from pipelines.evaluation_sentences import finding_rows
from pipelines.evaluation_tables import EvaluationTable

NAME = "attacks"
HEADING = "Do predictions and explanations withstand attacks?"
NOT_ASKED = (
    "Attacks were not asked for: nothing is said about how predictions and explanations change "
    "where the picture hardly does. The option --robust measures it."
)
CAPTIONS: Mapping[str, tuple[str, str]] = {
    METHODS: (
        "Explanations under attack, by method.",
        "Maps of the first model, and attention of others trained as usual. Lines: the worst "
        "attack on each picture, with 95 % intervals over patients; dots: noise of the same size.",
    ),
    GRADIENTS: (
        "Explanations under attack, by training.",
        "The simple gradient of every model; lines and dots as before.",
    ),
    ACCURACY: (
        "Predictions under attack.",
        "Balanced accuracy at the worst point within each radius; bands: 95 % over patients.",
    ),
    SPARSITY: (
        "Sparsity and accuracy.",
        "One dot for each model; bars are 95 % intervals over patients.",
    ),
}


def robust_section(
    found: Evaluation,
    made: Mapping[str, EvaluationTable],
    figures: Mapping[str, bytes],
    claimed: Sequence[Finding],
    groups: Sequence[Group],
) -> Section:
    """Return the section; where nothing was attacked it says so, and how to ask.

    Parameters
    ----------
    figures
        Name of a figure -> PNG.
    claimed
        Claims about attacks.
    groups
        Gradient maps of models side by side.
    """
    attacked = found.robustness
    if attacked is None:
        return Section(name=NAME, heading=HEADING, texts=(NOT_ASKED,))
    return Section(
        name=NAME,
        heading=HEADING,
        texts=texts(attacked),
        figures=[
            NamedFigure(title=title, caption=caption, png=figures[name])
            for name, (title, caption) in CAPTIONS.items()
            if name in figures
        ],
        tables=[NamedTable(name=name, table=made[name]) for name in ROBUST_TABLES if name in made],
        findings=finding_rows(claimed),
        groups=groups,
    )


def texts(attacked: Robustness) -> tuple[str, ...]:
    """Say what was attacked, whether the attacks can be believed, and what stands beside them."""
    return (
        f"Predictions of {attacked.samples} test pictures of {attacked.patients} patients were "
        f"attacked, and the explanations of {attacked.explained} of them. An attack that finds "
        "nothing proves nothing: accuracy under attack is an upper bound.",
        masking_text(attacked.masking),
        *attacked.notes,
    )


def masking_text(checks: Sequence[MaskingCheck]) -> str:
    """Say where gradients seem to mislead the attack."""
    if not checks:
        return (
            "Whether gradients mislead the attack was not checked: pictures may show several "
            "findings, so that none is right or wrong as a whole."
        )
    seen = [check for check in checks if check.suspected]
    if not seen:
        return (
            "Many steps did at least as well as one step and as noise on every network: nothing "
            "suggests that gradients mislead the attack."
        )
    listed = "; ".join(
        f"{x.model}, {x.attack} {x.radius:g}: {x.suspected} of {x.seeds} networks (accuracy "
        f"{100 * x.iterative:.0f} % under many steps, {100 * x.one_step:.0f} % under one, "
        f"{100 * x.noise:.0f} % under noise)"
        for x in seen
    )
    return (
        "A weaker attack did better than many steps, so that gradients mislead the attack and "
        f"accuracies under it may be too high to be believed: {listed}."
    )
