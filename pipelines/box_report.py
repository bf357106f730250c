"""Maps against boxes for people: tables, figures, cases, and a section for a page."""

from collections.abc import Sequence
from pathlib import Path

from pipelines import run as run_files
from pipelines.box_figures import CRITERION_NAMES, accuracy_figure
from pipelines.box_measures import CRITERIA, MEASURES, THRESHOLDS, Criterion
from pipelines.box_records import CLEAN, MEAN, BoxEntry, BoxScores
from pipelines.box_tables import case_rows, label_of, tables
from pipelines.box_training import training_sentences
from pipelines.evaluation_tables import as_csv, as_latex, as_markdown
from pipelines.gallery import GalleryCase, gallery_png, gallery_svg
from pipelines.pages import render
from preprocessing.atomic_files import atomic_write

TABLES, FIGURES, SECTION = "tables", "figures", "boxes.html"
BOXES = "boxes"
"""Anchor of the section."""
CASES, GALLERY = "box-cases.csv", "boxes-gallery"
OPEN = ("boxes-training", "boxes-differences", "boxes-without-threshold", "boxes-areas")
"""Tables that are shown at once; the others open on request."""
SHOWN: tuple[tuple[Criterion, int], ...] = (("iobb", 180), ("iou", 180))
"""Figures of the section; the files hold them all."""
HEADLINE = "iou_equal_area"


def write_box_report(found: BoxScores, out: Path, *, cases: Sequence[GalleryCase] = ()) -> None:
    """Write ``tables/``, ``figures/`` and ``boxes.html``, a section without page around it.

    Parameters
    ----------
    cases
        Of ``box_gallery.gallery_cases``; without them there is no gallery.

    Raises
    ------
    OutputError
        The disk is full, or the folder cannot be written.
    """
    for name in (TABLES, FIGURES):
        (out / name).mkdir(parents=True, exist_ok=True)
    for name, table in tables(found).items():
        forms = {"csv": as_csv(table.rows), "md": as_markdown(table), "tex": as_latex(table)}
        for ending, text in forms.items():
            run_files.write_text(out / TABLES / f"{name}.{ending}", text)
    run_files.write_text(out / TABLES / CASES, as_csv(case_rows(found, MEASURES)))
    for criterion in CRITERIA:
        for threshold in THRESHOLDS:
            drawn = accuracy_figure(found, criterion=criterion, threshold=threshold)
            _write_picture(out / FIGURES / f"boxes-{criterion}-{threshold}", drawn)
    if cases:
        drawn = {"png": gallery_png(cases), "svg": gallery_svg(cases)}
        _write_picture(out / FIGURES / GALLERY, drawn)
    run_files.write_text(out / SECTION, html_section(found, cases))


def _write_picture(path: Path, drawn: dict[str, bytes]) -> None:
    for ending, content in drawn.items():
        atomic_write(path.with_name(f"{path.name}.{ending}"), content)


def html_section(
    found: BoxScores, cases: Sequence[GalleryCase] = (), *, with_verdict: bool = True
) -> str:
    """Return a ``<section>`` for a page with the styles of this room; pictures are inside it.

    Parameters
    ----------
    with_verdict
        Whether it begins with its own verdict, or the page says that elsewhere.
    """
    made = tables(found)
    pictures = [
        (
            f"Accuracy at T({CRITERION_NAMES[criterion]}).",
            accuracy_figure(found, criterion=criterion, threshold=threshold)["png"],
            f"Best single box around regions of maps cut at {threshold} of 255; bands are 95 % "
            "intervals over patients, grey lines are controls.",
        )
        for criterion, threshold in SHOWN
    ]
    if cases:
        caption = "Contours frame the true boxes; each map is scaled to its own peak."
        pictures.append(("Best, median and worst case.", gallery_png(cases), caption))
    return render(
        "boxes.html",
        title=found.title,
        verdict=verdict(found) if with_verdict else [],
        pictures=pictures,
        open_tables=[made[name] for name in OPEN if name in made],
        closed_tables=[table for name, table in made.items() if name not in OPEN],
        notes=[*_counts(found), *found.notes],
        failures=dict(found.failures),
    )


def verdict(found: BoxScores) -> list[str]:
    """Say which maps of clean pictures cover the boxes best, and whether they beat the place."""
    ranked = sorted(
        (e for e in found.models() if e.condition == CLEAN and _headline(found, e) is not None),
        key=lambda entry: -(_headline(found, entry) or 0.0),
    )
    if not ranked:
        return ["No map was measured."]
    best = ranked[0]
    score = found.scores[best.name][MEAN][HEADLINE]
    sentences = [
        f"The maps that cover the boxes best are those of {label_of(best)}: taken at the size of "
        f"the true boxes they reach an IoU of {score.mean:.3f}, mean over findings (95 % interval "
        f"over patients {score.low:.3f} to {score.high:.3f})."
    ]
    apart = [d for d in found.differences if (d.variant, d.measure) == (best.name, HEADLINE)]
    for item in apart:
        more = "more" if item.low > 0 else "less" if item.high < 0 else "not clearly more or less"
        sentences.append(
            f"That is {more} than the {item.against} of each finding ({found.prior}), which knows "
            f"nothing of the picture: the difference is {item.value:+.3f} ({item.low:+.3f} to "
            f"{item.high:+.3f}), corrected p {item.p_holm:.3f}."
        )
    return sentences + training_sentences(found)


def _headline(found: BoxScores, entry: BoxEntry) -> float | None:
    score = found.scores[entry.name].get(MEAN, {}).get(HEADLINE)
    return None if score is None else score.mean


def _counts(found: BoxScores) -> list[str]:
    boxes = sum(len(case.boxes) for case in found.cases)
    boxed = len({case.subject_id for case in found.cases})
    return [
        f"{boxes} boxes of {len(found.cases)} findings in pictures of {boxed} patients; areas "
        f"under the ROC curve are over all {found.samples} test pictures of {found.patients} "
        f"patients. {found.resamples} resamples of the patients."
    ]
