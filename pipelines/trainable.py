"""What a data set must hold to be trained on, and what is unusual about it."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from models.losses import WEIGHTINGS
from pipelines.errors import DataError, UsageError
from pipelines.feed import Pictures
from pipelines.label_sets import FIELD, TaskKind
from preprocessing.layout import FieldSpec

LABEL_SET_REMARK = (
    "pictures may show several findings at once, so each finding is a yes or no of its own; every "
    "picture, those without a finding too, is drawn once per epoch (balance=loss weighs rare "
    "findings)"
)


def refuse_untrainable(
    splits: Mapping[str, Pictures],
    labels: Int64[np.ndarray, " n"],
    classes: Sequence[str],
) -> None:
    """Refuse a data set from which nothing can be learnt, or whose scores would mean nothing.

    Parameters
    ----------
    labels
        The one class of every row of the data set, -1 where it has none.

    Raises
    ------
    DataError
        ``NO_LABELS``, ``EMPTY_SPLIT``, ``ONE_CLASS``, ``SHARED_PATIENTS``.
    """
    several = any(found.labels.ndim > 1 for found in splits.values())
    if several:
        _refuse_no_finding(splits, classes)
    elif not (labels >= 0).any():
        raise DataError(
            "NO_LABELS",
            f"none of the {len(labels)} samples has a label: build the data set again with "
            "--labels CSV",
        )
    _refuse_empty(splits)
    if several:
        _refuse_constant(splits["train"].labels)
    else:
        _refuse_one_class(splits["train"].labels, classes)
    _refuse_shared_patients(splits)


def refuse_balance(balance: str, task: TaskKind) -> None:
    """Refuse weights of present and absent findings where a picture has one class.

    Raises
    ------
    UsageError
        ``BALANCE_NEEDS_LABEL_SETS``.
    """
    if balance in WEIGHTINGS and task == "multi-class":
        raise UsageError(
            "BALANCE_NEEDS_LABEL_SETS",
            f"balance={balance} weighs findings that are there against those that are not, and "
            "pictures of this data set have one class each: set balance=loss or balance=sampler",
        )


def refuse_misshapen(layout: Mapping[str, FieldSpec], classes: Sequence[str]) -> None:
    """Refuse label sets that do not fit the classes, before any is read.

    Raises
    ------
    DataError
        ``LABEL_SETS``.
    """
    if FIELD in layout and layout[FIELD].shape != (len(classes),):
        sizes = " x ".join(str(side) for side in layout[FIELD].shape) or "one number"
        raise DataError(
            "LABEL_SETS",
            f"'{FIELD}' holds {sizes} per row for {len(classes)} classes: it is one 0 or 1 for "
            "each class of the manifest, in that order; write it again, or leave it out and give "
            "each row one 'label'",
        )


def _refuse_no_finding(splits: Mapping[str, Pictures], classes: Sequence[str]) -> None:
    if not any(found.labels.any() for found in splits.values()):
        raise DataError(
            "NO_LABELS",
            f"none of the {sum(map(len, splits.values()))} samples shows any of the "
            f"{len(classes)} findings: build the data set again with the table that names them",
        )


def _refuse_empty(splits: Mapping[str, Pictures]) -> None:
    for name in ("train", "validation"):
        if not len(splits[name]):
            counts = ", ".join(f"{split} {len(found)}" for split, found in splits.items())
            raise DataError(
                "EMPTY_SPLIT",
                f"the {name} split has no labelled sample ({counts}): build the data set from "
                "more patients, or with other shares of the splits",
            )


def _refuse_one_class(labels: Int64[np.ndarray, " n"], classes: Sequence[str]) -> None:
    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(
            "ONE_CLASS",
            f"all {len(labels)} training samples are of the class "
            f"'{classes[int(present[0])]}': a classifier needs at least two classes",
        )


def _refuse_constant(labels: UInt8[np.ndarray, "n k"]) -> None:
    if (labels == labels[0]).all():
        shown = "no finding" if not labels[0].any() else f"the same {labels[0].sum()} finding(s)"
        raise DataError(
            "ONE_CLASS",
            f"all {len(labels)} training samples show {shown}: there is nothing to tell apart; "
            "build the data set from more patients, or with other shares of the splits",
        )


def _refuse_shared_patients(splits: Mapping[str, Pictures]) -> None:
    owners: dict[str, str] = {}
    for name, found in splits.items():
        for subject in set(found.subject_ids):
            other = owners.setdefault(subject, name)
            if other != name:
                raise DataError(
                    "SHARED_PATIENTS",
                    f"a patient has samples in {other} and in {name}: scores would be too good; "
                    "split the data set by patient",
                )


def remarks_on(
    splits: Mapping[str, Pictures], labels: Int64[np.ndarray, " n"], classes: Sequence[str]
) -> tuple[str, ...]:
    """Say what is unusual about a data set that can be trained on."""
    several = splits["train"].labels.ndim > 1
    remarks = [LABEL_SET_REMARK] if several else []
    unlabelled = 0 if several else int((labels < 0).sum())
    if unlabelled:
        remarks.append(f"{unlabelled} samples without a label take no part")
    if not len(splits["test"]):
        remarks.append("the test split is empty: no score on unseen patients is reported")
    held = {name: found for name, found in splits.items() if len(found)}
    remarks += _on_label_sets(held, classes) if several else _on_classes(held, classes)
    return tuple(remarks)


def _on_classes(splits: Mapping[str, Pictures], classes: Sequence[str]) -> list[str]:
    remarks = []
    for name, found in splits.items():
        absent = [kind for i, kind in enumerate(classes) if i not in found.labels]
        if absent:
            remarks.append(f"the {name} split holds no sample of: {', '.join(absent)}")
    return remarks


def _on_label_sets(splits: Mapping[str, Pictures], classes: Sequence[str]) -> list[str]:
    """Name findings that some split never or always shows; those that none shows only once."""
    share = {name: found.labels.mean(axis=0) for name, found in splits.items()}
    numbers = range(len(classes))
    nowhere = [k for k in numbers if all(found[k] == 0 for found in share.values())]
    told = [("no split shows", nowhere)]
    for name, found in share.items():
        absent = [k for k in numbers if found[k] == 0 and k not in nowhere]
        untaught = " (so these are not learnt)" if name == "train" else ""
        told.append((f"the {name} split does not show{untaught}", absent))
        told.append(
            (f"every sample of the {name} split shows", [k for k in numbers if found[k] == 1])
        )
    return [f"{what}: {', '.join(classes[k] for k in which)}" for what, which in told if which]
