"""All plans of reproductions; how one is looked up, and made smaller."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from models.errors import unknown
from pipelines import reproduce_brats18, reproduce_chestxray14, reproduce_fdg_pet
from pipelines.errors import UsageError
from pipelines.reproduce_groups import BASELINE, Plan, Size

PLANS: Mapping[str, Mapping[Size, Plan]] = MappingProxyType(
    {
        "brats18": {"small": reproduce_brats18.SMALL, "full": reproduce_brats18.FULL},
        "fdg-pet": {"small": reproduce_fdg_pet.SMALL, "full": reproduce_fdg_pet.FULL},
        "chestxray14": {
            "small": reproduce_chestxray14.SMALL,
            "full": reproduce_chestxray14.FULL,
        },
    }
)
"""Data set -> size -> what is reproduced."""


def planned(dataset: str, size: str) -> Plan:
    """Look a plan up.

    Raises
    ------
    UsageError
        ``UNKNOWN_DATASET``, ``UNKNOWN_SIZE``.
    """
    if dataset not in PLANS:
        raise UsageError("UNKNOWN_DATASET", unknown("data set to reproduce", dataset, PLANS))
    sizes = {str(name): plan for name, plan in PLANS[dataset].items()}
    if size not in sizes:
        raise UsageError("UNKNOWN_SIZE", unknown("--size", size, sizes))
    return sizes[size]


def restricted(plan: Plan, *, names: Sequence[str] = (), subjects: int | None = None) -> Plan:
    """Return a smaller plan; baselines of groups that others start from always stay.

    Parameters
    ----------
    names
        Kinds of runs to keep, as ``Plan.names``; all where none is named.

    Raises
    ------
    UsageError
        ``UNKNOWN_VARIANT``; ``FEW_SUBJECTS`` where patients cannot be split.
    """
    for name in names:
        if name not in plan.names:
            raise UsageError("UNKNOWN_VARIANT", unknown("run in this plan", name, plan.names))
    if subjects is not None and subjects < LEAST_SUBJECTS:
        raise UsageError(
            "FEW_SUBJECTS",
            f"--subjects is {subjects}: too few to train, to validate and to test; give "
            f"{LEAST_SUBJECTS} or more",
        )
    changed = plan if subjects is None else replace(plan, subjects=subjects)
    if not names:
        return changed
    starts = {group.start for group in plan.groups} | {BASELINE}
    kept = [
        replace(group, variants=found)
        for group in plan.groups
        if (
            found := tuple(
                name
                for name in group.variants
                if group.called(name) in names or group.name in starts
            )
        )
    ]
    left = [name for name in plan.names if name not in names and name not in starts]
    told = (f"not trained, as asked for: {', '.join(left)}",) if left else ()
    return replace(changed, groups=tuple(kept), left_out=(*plan.left_out, *told))


LEAST_SUBJECTS = 12
"""Below which a class may be missing from a split."""
