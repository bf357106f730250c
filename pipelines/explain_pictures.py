"""Overlays, captions and the gallery's rows of one scan after the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from pipelines import figures, gallery, pages
from pipelines.explain_batches import is_number
from pipelines.explain_records import Map, Scan, Task, truth_fields
from preprocessing.atomic_files import atomic_write

OVERLAYS = "overlays"
FLAT = 1.5
"""A map without signs whose peak is not so many times its mean points nowhere."""
GALLERY, GALLERY_PNG, GALLERY_SVG = "gallery.html", "gallery.png", "gallery.svg"


def background(task: Task, scan: Scan) -> tuple[figures.ScanPicture, str]:
    """Return the projection, and what its greys measure; "" where they mean nothing."""
    suv, unit = _greys(task, scan)
    mask = scan.arrays.get("mask")
    return figures.ScanPicture(
        suv=suv,
        mask=mask if mask is not None and mask.any() else None,
        extent_mm=_extent_mm(task, scan),
    ), unit


def _greys(task: Task, scan: Scan) -> tuple[Float[np.ndarray, "row column"], str]:
    """Return the projection and its unit; else the last channel (FLAIR, of brains) as it is."""
    if "suv" in scan.arrays:
        paper = task.config.data.recipe_config.get("suv_formula") == "paper"
        return scan.arrays["suv"].astype(np.float32), "paper" if paper else "SUV"
    channel = scan.arrays["image"][-1].astype(np.float32)
    low, high = float(channel.min()), float(channel.max())
    # Air is black in a radiograph and in magnetic resonance: the figure inverts.
    return figures.SUV_BLACK * (1 - (channel - low) / max(high - low, 1e-6)), ""


def _extent_mm(task: Task, scan: Scan) -> tuple[float, float] | None:
    if not {"volume_affine", "volume_shape"} <= scan.arrays.keys():
        return None
    return figures.picture_extent_mm(
        scan.arrays["volume_affine"],
        scan.arrays["volume_shape"],
        keep_aspect=bool(task.config.data.recipe_config.get("keep_aspect", False)),
    )


def draw(task: Task, scan: Scan, maps: Sequence[Map]) -> list[tuple[str, bytes, str]]:
    """Draw the scan alone and each map over it, and write them as PNG."""
    if not task.settings.overlays:
        return []
    shown, unit = background(task, scan)
    common: dict[str, Any] = {"mask": shown.mask, "unit": unit, "extent_mm": shown.extent_mm}
    images = [("scan", figures.overlay(shown.suv, **common), "")]
    for found in maps:
        png = figures.overlay(
            shown.suv,
            found.values,
            signed=found.signed,
            title=found.method,
            word=found.word,
            caption=_measured(found),
            **common,
        )
        images.append((found.method, png, caption(task, scan, found)))
    for name, png, _ in images:
        atomic_write(task.out / OVERLAYS / f"{scan.name}_{name}.png", png)
    return images


def _measured(found: Map) -> str:
    """Write law and residual; a method without a law says nothing."""
    if found.residual is None:
        return found.law
    residual = f"{100 * found.residual:.2g} % off" if is_number(found.residual) else "not a number"
    return f"{found.law}: {residual}"


def caption(task: Task, scan: Scan, found: Map) -> str:
    """Say what a map explains, how well it finds the true region, and how far to believe it."""
    about = "not tied to a class" if found.target < 0 else f"for '{task.classes[found.target]}'"
    if found.target >= 0 and task.config.data.task == "multi-label":
        shown = "is" if task.classes[found.target] in scan.truth(task.classes) else "is not"
        about += f" ({scan.probabilities[found.target]:.3f}; it {shown} among the labels)"
    precision = found.scores.get("average_precision", float("nan"))
    if np.isfinite(precision):
        uniform = found.scores["uniform_average_precision"]
        about += f"; average precision {precision:.3f} (a uniform map: {uniform:.3f})"
    if _is_flat(found):
        about += "; flat: it points nowhere"
    return f"{about}. {verdict_line(found.word, found.reason)}"


def _is_flat(found: Map) -> bool:
    mean = float(found.values.mean(dtype=np.float64))
    return not found.signed and mean > 0 and float(found.values.max()) < FLAT * mean


def verdict_line(word: str, reason: str) -> str:
    """Write a verdict and its reason as one sentence."""
    return f"Verdict: {word}, {reason}" if word else reason[:1].upper() + reason[1:]


def case_view(task: Task, scan: Scan, images: Sequence[tuple[str, bytes, str]]) -> pages.CaseView:
    """Show one scan with its class, its pictures and what its reading warned of."""
    provenance = task.scans[scan.index].provenance
    notes = [f"SUV route: {provenance['suv_route']}"] if provenance.get("suv_route") else []
    if provenance.get("warnings"):
        notes.append(f"Warnings: {provenance['warnings']}")
    named = zip(task.classes, scan.probabilities, strict=True)
    return pages.CaseView(
        sample_id=scan.name,
        label=", ".join(scan.truth(task.classes)),
        prediction=task.classes[scan.prediction],
        findings=scan.truth(task.classes) if truth_fields(task) else None,
        probabilities={name: float(value) for name, value in named},
        images=images,
        notes=notes,
    )


def gallery_case(task: Task, scan: Scan, maps: Sequence[Map]) -> gallery.GalleryCase:
    """Make a scan a row of the gallery."""
    shown, unit = background(task, scan)
    truth = ", ".join(scan.truth(task.classes)) or ("no finding" if truth_fields(task) else "")
    words = [scan.name, f"true: {truth}"] if truth else [scan.name]
    share = float(scan.probabilities[scan.prediction])
    words.append(f"predicted: {task.classes[scan.prediction]} ({share:.2f})")
    return gallery.GalleryCase(
        name=" · ".join(words),
        scan=shown,
        unit=unit,
        cells={
            found.method: gallery.Cell(
                values=found.values, signed=found.signed, word=found.word, note=_note(task, found)
            )
            for found in maps
        },
    )


def _note(task: Task, found: Map) -> str:
    if _is_flat(found):
        return "flat: points nowhere"
    precision = found.scores.get("average_precision", float("nan"))
    if np.isfinite(precision):
        return f"AP {precision:.2f} (flat {found.scores['uniform_average_precision']:.2f})"
    return "" if found.target < 0 else f"for {task.classes[found.target]}"


def write_gallery(
    task: Task,
    cases: Sequence[gallery.GalleryCase],
    *,
    checks: Mapping[str, str],
    intro: Sequence[str],
    tables: Sequence[pages.Table],
) -> None:
    """Write the gallery as a page, as PNG and as SVG.

    Parameters
    ----------
    checks
        Name of a map -> verdict of its method's check, where one was made.
    """
    names = gallery.columns_of(cases)
    signs = {name: cell.signed for case in cases for name, cell in case.cells.items()}
    columns = [
        pages.GalleryColumn(name=name, signed=signs[name], check=checks.get(name, ""))
        for name in names
    ]
    rows = [
        pages.GalleryRow(
            name=case.name,
            scan=gallery.cell_png(case),
            cells={name: _cell_view(case, name) for name in case.cells},
        )
        for case in cases
    ]
    title = f"{task.config.train.network} / {task.config.train.variant}: cases and methods"
    page = pages.gallery_page(
        title,
        columns=columns,
        rows=rows,
        legend=gallery.legend_png(cases),
        intro=intro,
        tables=tables,
    )
    atomic_write(task.out / GALLERY, page.encode("utf-8"))
    atomic_write(task.out / GALLERY_PNG, gallery.gallery_png(cases))
    atomic_write(task.out / GALLERY_SVG, gallery.gallery_svg(cases))


def _cell_view(case: gallery.GalleryCase, name: str) -> pages.GalleryCell:
    cell = case.cells[name]
    lines = (*figures.scale_lines(cell.values, signed=cell.signed), cell.note)
    return pages.GalleryCell(image=gallery.cell_png(case, name), word=cell.word, lines=lines)
