"""What was written of runs under attack, read back.

Axes: n picture, m picture whose explanation is attacked, k class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from pipelines import evaluation_files as files
from pipelines.evaluation_collect import Measured
from pipelines.evaluation_files import Key
from pipelines.evaluation_robust_choice import CLEAN, WORST
from pipelines.evaluation_robustness import ALIKE, SPARSE

OF_ATTACK = (*ALIKE, "preserved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What the table of one run under attack holds.

    Attributes
    ----------
    shares
        Attack and radius -> probabilities.
    plain
        Method and level -> measure -> one number per picture.
    attacked
        Method and level -> ``<metric>@<attack>:<radius>`` -> one number per explained picture.
    """

    shares: Mapping[str, Float[np.ndarray, "n k"]] = field(repr=False)
    plain: Mapping[Key, Mapping[str, Float[np.ndarray, " n"]]] = field(repr=False)
    attacked: Mapping[Key, Mapping[str, Float[np.ndarray, " m"]]] = field(repr=False)


def condition(attack: str, radius: float) -> str:
    """Name an attack and its radius behind a measure."""
    return CLEAN if attack == CLEAN else f"{attack}:{radius:g}"


def read_table(measured: Measured, *, explained: Sequence[str]) -> Table:
    """Read a run's table; methods that failed on the way are left out.

    Parameters
    ----------
    explained
        Pictures whose explanations were attacked, in order.
    """
    left_out = {method for method, _ in measured.failed}
    places = {name: i for i, name in enumerate(explained)}
    shares: dict[str, list[list[float]]] = {}
    plain: dict[Key, dict[str, list[float]]] = {}
    attacked: dict[Key, dict[str, np.ndarray]] = {}
    for row in files.rows_of(measured.unit.files.tables[files.ATTACKS]):
        key, radius = (row["method"], row["level"]), float(row["radius"])
        if not key[0]:
            answers = [float(v) for name, v in row.items() if name.startswith("probability_")]
            shares.setdefault(condition(row["attack"], radius), []).append(answers)
        elif key[0] in left_out:
            continue
        elif row["attack"] == CLEAN:
            own = plain.setdefault(key, {name: [] for name in SPARSE})
            for name in SPARSE:
                own[name].append(_number(row[name]))
        else:
            _add(attacked.setdefault(key, {}), row, places)
    return Table(
        shares={name: np.array(rows) for name, rows in shares.items()},
        plain={
            key: {name: np.array(values) for name, values in own.items()}
            for key, own in plain.items()
        },
        attacked=attacked,
    )


def _number(text: str) -> float:
    return float(text or "nan")


def _add(columns: dict[str, np.ndarray], row: Mapping[str, str], places: Mapping[str, int]) -> None:
    """Put one attacked map into the columns of its attack, and of the worst where it is that."""
    names = [row["attack"], *([WORST] if int(row["worst"]) else [])]
    for metric in OF_ATTACK:
        for name in names:
            column = f"{metric}@{condition(name, float(row['radius']))}"
            values = columns.setdefault(column, np.full(len(places), np.nan))
            values[places[row["sample_id"]]] = _number(row[metric])
