"""Which methods explain a run: those named, or all that its network can take; and their checks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from models.errors import ModelError, unknown
from models.explainers import EXPLAINERS, Explainer
from models.explainers.verify import RANDOMISATION, REPETITION, Verification, verify
from models.records import Attribution
from pipelines.config import ExplainConfig
from pipelines.errors import MemoryShortError, UsageError
from pipelines.explain_batches import Batch, batch_of
from pipelines.explain_records import Task
from pipelines.progress import Progress

ALL = "all"
STANDARD = ("attention", "gradcam")
"""Explain where no method is named: the model's own maps, where it has any, and gradients'."""
VERIFIED_SCANS, ROUNDS = 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """What is asked for, with the settings of this run.

    Attributes
    ----------
    explainers
        Name -> explainer.
    named
        Whether the user named each of them, so that one that cannot is an error.
    """

    explainers: Mapping[str, Explainer] = field(repr=False)
    named: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """Methods that can explain the network, with their maps of the first batch.

    Attributes
    ----------
    explainers
        Name -> explainer.
    first
        Name -> maps of the first batch; they are not computed again.
    left_out
        Name -> why the network cannot be explained in this way.
    """

    explainers: Mapping[str, Explainer] = field(repr=False)
    first: Mapping[str, tuple[Attribution, ...]] = field(repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict)


def chosen(settings: ExplainConfig) -> Methods:
    """Look up the methods; each sees ``batch_size`` pictures, or copies of them, at once.

    Raises
    ------
    UsageError
        ``UNKNOWN_METHOD``.
    """
    for name in settings.methods:
        if name not in EXPLAINERS and name != ALL:
            raise UsageError("UNKNOWN_METHOD", unknown("method", name, (*EXPLAINERS, ALL)))
    every = ALL in settings.methods
    names = EXPLAINERS if every else dict.fromkeys(settings.methods or STANDARD)
    return Methods(
        explainers={
            name: replace(EXPLAINERS[name], batch_size=settings.batch_size) for name in names
        },
        named=bool(settings.methods) and not every,
    )


def fitting(methods: Methods, task: Task, first: Batch, progress: Progress) -> Fitting:
    """Explain the first batch by every method, and leave out those that cannot.

    Raises
    ------
    UsageError
        With the method's own code, where a named method cannot explain the network, or none can.
    """
    maps: dict[str, tuple[Attribution, ...]] = {}
    refusals: dict[str, UsageError] = {}
    for done, (name, explainer) in enumerate(methods.explainers.items(), start=1):
        try:
            maps[name] = explained(explainer, task, first)
        except UsageError as error:
            refusals[name] = error
        progress("methods", done, len(methods.explainers))
    if refusals and (methods.named or not maps):
        name, error = next(iter(refusals.items()))
        raise UsageError(error.code, f"{name}: {error}")
    return Fitting(
        explainers={name: methods.explainers[name] for name in maps},
        first=maps,
        left_out={name: str(error) for name, error in refusals.items()},
    )


def explained(explainer: Explainer, task: Task, batch: Batch) -> tuple[Attribution, ...]:
    """Explain a batch by one method.

    Raises
    ------
    MemoryShortError
        ``OUT_OF_MEMORY``.
    UsageError
        With the method's own code.
    """
    try:
        return explainer(task.network, batch.images, batch.target)
    except torch.OutOfMemoryError:
        raise MemoryShortError(
            "OUT_OF_MEMORY",
            f"memory ran out while '{explainer.name}' explained {explainer.batch_size} pictures at "
            "once: lower --batch-size, the maps stay the same",
        ) from None
    except ModelError as error:
        raise UsageError(error.code, str(error)) from None


def verified(
    explainers: Mapping[str, Explainer], task: Task, progress: Progress
) -> dict[str, Verification]:
    """Hold every method against random weights and random maps, on scans of the whole split."""
    batch = batch_of(task, spread(task.count, VERIFIED_SCANS))
    found = {}
    for done, (name, explainer) in enumerate(explainers.items(), start=1):
        generator = torch.Generator().manual_seed(task.config.train.seed)
        try:
            answer = verify(
                explainer,
                task.network,
                batch.images,
                batch.target,
                generator=generator,
                rounds=ROUNDS,
            )
        except ModelError as error:
            answer = _unverified(name, error)
        found[name] = replace(answer, method=name)
        progress("verifying", done, len(explainers))
    return found


def _unverified(name: str, error: ModelError) -> Verification:
    return Verification(
        method=name,
        randomised_similarity=math.nan,
        random_similarity=math.nan,
        repeat_difference=math.nan,
        law_residual=None,
        verdict="doubtful",
        reason=f"the check could not be made: {error}",
    )


def condemned(verification: Verification | None) -> str:
    """Say why no map of a method may be shown as an explanation; "" where they may.

    A method whose maps miss their own law is judged map by map instead.
    """
    if verification is None or verification.verdict != "refused":
        return ""
    alike = verification.randomised_similarity > RANDOMISATION.refused
    unsteady = verification.repeat_difference > REPETITION.refused
    return verification.reason if alike or unsteady else ""


def verification_rows(
    verifications: Mapping[str, Verification],
) -> list[dict[str, str | int | float]]:
    """Return the rows of ``verification.csv``; what is not a finite number is empty."""
    return [
        {
            "method": name,
            "randomised_similarity": _number(found.randomised_similarity),
            "random_similarity": _number(found.random_similarity),
            "structural_similarity": _number(found.structural_similarity),
            "random_structural_similarity": _number(found.random_structural_similarity),
            "repeat_difference": _number(found.repeat_difference),
            "law_residual": _number(found.law_residual),
            "verdict": found.verdict,
            "reason": found.reason,
        }
        for name, found in verifications.items()
    ]


def _number(value: float | None) -> Any:
    return "" if value is None or not math.isfinite(value) else value


def spread(count: int, wanted: int) -> Sequence[int]:
    """Return up to ``wanted`` numbers below ``count``, evenly apart from the first to the last."""
    if count <= wanted:
        return range(count)
    if wanted == 1:
        return (0,)
    return tuple(round(place * (count - 1) / (wanted - 1)) for place in range(wanted))
