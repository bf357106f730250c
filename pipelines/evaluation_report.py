"""The report of an evaluation: tables, claims, figures, galleries, and one page that holds them.

The page is one file without network and without script. Beside it stand the same tables for
programs and for a paper, the claims with every comparison, and the pictures.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipelines import evaluation_texts as texts
from pipelines.evaluation_appendix import NO_APPENDIX, Appendix
from pipelines.evaluation_blocks import real
from pipelines.evaluation_cells import columns
from pipelines.evaluation_choice import headline
from pipelines.evaluation_figures import draw
from pipelines.evaluation_findings import Finding, findings
from pipelines.evaluation_gallery import Cases, Group, groups
from pipelines.evaluation_records import Evaluation
from pipelines.evaluation_robust_figures import draw_attacks
from pipelines.evaluation_robust_findings import robust_findings
from pipelines.evaluation_robust_gallery import gradient_groups
from pipelines.evaluation_robust_page import robust_section
from pipelines.evaluation_robust_tables import robust_tables
from pipelines.evaluation_sections import NamedFigure, NamedTable, Section
from pipelines.evaluation_sentences import (
    claim_rows,
    comparison_rows,
    finding_rows,
    verdict,
)
from pipelines.evaluation_tables import (
    THEIRS,
    EvaluationTable,
    as_csv,
    as_latex,
    as_markdown,
    tables,
)
from pipelines.evaluation_verdicts import MEANINGS
from pipelines.gallery import gallery_png, gallery_svg
from pipelines.pages import render
from pipelines.progress import Progress, silent
from pipelines.published import PAPER
from preprocessing.atomic_files import atomic_write

PAGE, CLAIMS_FILE, SCORES_FILE = "report.html", "claims.csv", "scores.csv"
TABLES, FIGURES, GALLERIES = "tables", "figures", "galleries"
STAGES = ("tables", "claims", "figures", "galleries", "report")


def write_report(
    found: Evaluation,
    out: Path,
    *,
    cases: Cases | None = None,
    progress: Progress = silent,
    appendix: Appendix = NO_APPENDIX,
) -> Path:
    """Write tables, claims, figures, galleries and ``report.html``.

    Parameters
    ----------
    out
        Folder that holds the scores per sample under ``scores``; what stands there of an earlier
        report is replaced.
    cases
        Gives pictures and maps of samples; without it there are no galleries.
    appendix
        Shown on the page, too.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    OutputError
        If something cannot be written.
    """
    steps = iter(range(1, len(STAGES) + 1))
    made = tables(found) | robust_tables(found)
    _write_tables(found, made, out / TABLES)
    progress(STAGES[0], next(steps), len(STAGES))
    claimed, attacked = findings(found), robust_findings(found)
    rows = comparison_rows([*claimed, *attacked])
    _write(out / TABLES, {CLAIMS_FILE: as_csv(rows).encode("utf-8")})
    progress(STAGES[1], next(steps), len(STAGES))
    drawn = draw(found) | draw_attacks(found)
    _write(
        out / FIGURES, {f"{n}.{e}": data for n, both in drawn.items() for e, data in both.items()}
    )
    progress(STAGES[2], next(steps), len(STAGES))
    chosen = [] if cases is None else groups(found, out, cases)
    gradients = [] if cases is None else gradient_groups(found, out, cases)
    _write_galleries([*chosen, *gradients], out / GALLERIES)
    progress(STAGES[3], next(steps), len(STAGES))
    figures = {name: both["png"] for name, both in drawn.items()}
    html = page(
        found,
        made,
        claimed,
        figures,
        chosen,
        asked=cases is not None,
        appendix=appendix,
        attacks=(attacked, gradients),
    )
    _write(out, {PAGE: html.encode("utf-8")})
    progress(STAGES[4], next(steps), len(STAGES))
    return out / PAGE


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    if files:
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        atomic_write(folder / name, content)


def _write_tables(found: Evaluation, made: Mapping[str, EvaluationTable], folder: Path) -> None:
    files = {}
    for name, table in made.items():
        files[f"{name}.csv"] = as_csv(table.rows)
        files[f"{name}.md"] = as_markdown(table)
        files[f"{name}.tex"] = as_latex(table)
    files[SCORES_FILE] = as_csv(score_rows(found))
    _write(folder, {name: text.encode("utf-8") for name, text in files.items()})


def score_rows(found: Evaluation) -> list[dict[str, str | int | float]]:
    """Return every entry with every measure, also those that no table shows."""
    measures = dict.fromkeys(name for mine in found.scores.values() for name in mine)
    return [
        {"entry": name, **columns(found.scores.get(name, {}), measures)} for name in found.entries
    ]


def _write_galleries(chosen: Iterable[Group], folder: Path) -> None:
    for group in chosen:
        png, svg = gallery_png(group.cases), gallery_svg(group.cases)
        _write(folder, {f"{group.name}.png": png, f"{group.name}.svg": svg})


def page(
    found: Evaluation,
    made: Mapping[str, EvaluationTable],
    claimed: Sequence[Finding],
    figures: Mapping[str, bytes],
    chosen: Sequence[Group],
    *,
    asked: bool,
    appendix: Appendix = NO_APPENDIX,
    attacks: tuple[Sequence[Finding], Sequence[Group]] = ((), ()),
) -> str:
    """Return ``report.html``.

    Parameters
    ----------
    figures
        Name of a figure -> PNG.
    asked
        Whether pictures could be had for galleries.
    attacks
        Claims about attacks, and gradient maps of models side by side.
    """
    first = headline(found)
    under_attack = robust_section(found, made, figures, *attacks)
    return render(
        "evaluation.html",
        title=f"Evaluation: {found.title}",
        synthetic=found.synthetic,
        verdict=[*appendix.sentences, *verdict(found, claimed, attacks[0])],
        appendix=appendix,
        measured=texts.measured(found),
        claims=claim_rows(claimed),
        findings=finding_rows(claimed),
        meanings=list(MEANINGS.items()),
        resamples=found.resamples,
        marked=THEIRS,
        paper=PAPER,
        sections=[*sections(found, made, figures), under_attack],
        groups=chosen,
        headline="" if first is None else first.name,
        no_cases=texts.no_cases(found, asked=asked),
        laws=texts.laws(found),
        failures=texts.failures(found),
        how=texts.how(found),
        statistics=texts.statistics(found),
        limits=texts.limits(found),
        runs=texts.runs(found),
    )


def sections(
    found: Evaluation, made: Mapping[str, EvaluationTable], figures: Mapping[str, bytes]
) -> list[Section]:
    """Return the parts of the page with figures and tables; every table stands in one of them."""
    curves = [name for name in figures if name.startswith("perturbation-")]
    return [
        Section(
            name="localisation",
            heading="Do the maps find the true region?",
            texts=() if "localisation" in figures else (NO_MASKS,),
            figures=_shown(figures, ["localisation"]),
            tables=_named(made, ("table-2",)),
        ),
        Section(
            name="perturbation",
            heading="Do the maps name what the network uses?",
            texts=() if curves else (NO_CURVES,),
            figures=_shown(figures, curves),
            tables=_named(made, ("table-1", "table-5")),
        ),
        Section(
            name="accuracy",
            heading="What do the networks classify?",
            figures=_shown(figures, ["accuracy-localisation"]),
            tables=_named(made, ("table-3",)),
        ),
        Section(
            name="agreement",
            heading="Do the two levels tell the same, and how simple are the maps?",
            figures=_shown(figures, ["agreement"]),
            tables=_named(made, ("table-4",)),
        ),
        Section(
            name="further",
            heading="Randomisation, and differences one by one",
            texts=[] if real(found) else ["No method was measured."],
            tables=_named(made, ("table-6", "table-7")),
        ),
    ]


NO_MASKS = "No true region was measured, so the maps are held against nothing."
NO_CURVES = "No perturbation curve was measured."
CAPTIONS: Mapping[str, tuple[str, str]] = {
    "localisation": (
        "Localisation.",
        "Average precision of every entry, the best first; dotted and dashed lines are controls.",
    ),
    "accuracy-localisation": (
        "Accuracy and localisation.",
        "One dot for each model, a model without maps of its own with its best method's; bars are "
        "95 % intervals over patients.",
    ),
    "agreement": (
        "Agreement.",
        "Distance between the two levels of each model's own maps; smaller is better.",
    ),
}
CURVES = (
    "Input perturbation.",
    "A good map keeps the judge right for longer: its curve stays high. Pale lines: all others.",
)


def _shown(figures: Mapping[str, bytes], chosen: Sequence[str]) -> list[NamedFigure]:
    return [
        NamedFigure(title=title, caption=caption, png=figures[name])
        for name in chosen
        if name in figures
        for title, caption in (CAPTIONS.get(name, CURVES),)
    ]


def _named(made: Mapping[str, EvaluationTable], chosen: Sequence[str]) -> list[NamedTable]:
    return [NamedTable(name=name, table=made[name]) for name in chosen]
