"""Rows of case files to shards: patients are split, and each split is cut into files.

A shard that an earlier try has finished is taken over only where the journal proves it to hold the
same rows and its bytes still hash to what was written.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import BuildConfig
from pipelines.derive import Derived
from pipelines.progress import Progress
from pipelines.recipes import Recipe
from preprocessing.errors import ShardError, SplitError
from preprocessing.journal import Journal
from preprocessing.official_split import OFFICIAL, split_officially
from preprocessing.shards import CaseRow, FieldSpec, ShardRecord, file_sha256, write_shard
from preprocessing.splits import SPLITS

Found = tuple[CaseRow, Path, int]
"""A row, its case file and its number in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a row ended up."""

    row: CaseRow
    case_file: Path = field(repr=False)
    case_row: int
    split: str
    shard: str
    shard_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """One shard to be."""

    file: str
    split: str
    members: Sequence[Found]

    @property
    def content(self) -> str:
        """Hash of the rows in order: equal plans have equal content."""
        lines = "".join(f"{row.sample_id}|{row.digest}|{row.label}\n" for row, _, _ in self.members)
        return hashlib.sha256(lines.encode()).hexdigest()

    def placed(self) -> Iterator[Placed]:
        """Yield each row with its place."""
        for at, (row, path, number) in enumerate(self.members):
            yield Placed(
                row=row,
                case_file=path,
                case_row=number,
                split=self.split,
                shard=self.file,
                shard_row=at,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where shards go and what they are made by.

    Attributes
    ----------
    out
        The data set's folder.
    workspace
        Folder for unfinished files, on the same disk.
    """

    out: Path
    workspace: Path
    recipe: Recipe
    config: BuildConfig
    layout: Mapping[str, FieldSpec]
    journal: Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Where every row ended up.

    Attributes
    ----------
    remarks
        Where the splits are not what was asked for.
    """

    rows: Sequence[Placed]
    records: Sequence[ShardRecord]
    remarks: tuple[str, ...]

    @property
    def samples(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: sum(row.split == split for row in self.rows) for split in SPLITS}

    @property
    def subjects(self) -> int:
        """Number of patients."""
        return len({item.row.subject_id for item in self.rows})


def place_rows(derived: Sequence[Derived], placement: Placement, *, progress: Progress) -> Placing:
    """Split patients, cut each split into shards, and write those that do not stand yet.

    Raises
    ------
    ShardError
        ``SAMPLE_ID_REPEATED``: two cases share a shortened pseudonym.
    """
    plan, remarks = _plan(derived, placement.config)
    journalled = {
        event["file"]: event for event in placement.journal.replay() if event["event"] == "shard"
    }
    _remove_strays(placement.out, plan)
    records: list[ShardRecord] = []
    for done, shard in enumerate(plan, start=1):
        record = _standing(shard, placement, journalled.get(shard.file))
        records.append(record or _written(shard, placement))
        progress("shards", done, len(plan))
    rows = [place for shard in plan for place in shard.placed()]
    return Placing(rows=rows, records=records, remarks=remarks)


def _plan(derived: Sequence[Derived], config: BuildConfig) -> tuple[list[_Shard], tuple[str, ...]]:
    rows: list[Found] = sorted(
        ((row, item.path, number) for item in derived for number, row in enumerate(item.rows)),
        key=lambda found: found[0].sample_id,
    )
    _refuse_repeated_ids([row.sample_id for row, _, _ in rows])
    split_of, remarks = _split([row for row, _, _ in rows], config)
    plan = [
        shard
        for split in SPLITS
        for shard in _cut(
            split,
            [found for found in rows if split_of[found[0].subject_id] == split],
            config.samples_per_shard,
        )
    ]
    return plan, remarks


def _split(
    rows: Sequence[CaseRow], config: BuildConfig
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Split patients as asked; where they are too few for it, all are for training."""
    subjects = [row.subject_id for row in rows]
    try:
        split_of = split_officially(
            subjects,
            [row.label for row in rows],
            [str(row.provenance.get(OFFICIAL, "")) for row in rows],
            test_fraction=config.test_fraction,
            validation_fraction=config.validation_fraction,
            seed=config.seed,
        )
    except SplitError as error:
        if error.code != "TOO_FEW_PATIENTS":
            raise
        remark = f"{error.code}: {error}; until then all patients are in the training part"
        return dict.fromkeys(subjects, "train"), (remark,)
    return split_of, ()


def _remove_strays(out: Path, plan: Sequence[_Shard]) -> None:
    """Remove shards that an earlier try has left and this plan does not have."""
    wanted = {out / shard.file for shard in plan}
    for path in (out / "shards").glob("*.h5"):
        if path not in wanted:
            path.unlink()


def _refuse_repeated_ids(sample_ids: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(sample_ids).items() if count > 1]
    if repeated:
        raise ShardError(
            "SAMPLE_ID_REPEATED",
            f"{len(repeated)} sample pseudonyms stand for several cases: build with another key",
        )


def _cut(split: str, rows: Sequence[Found], size: int) -> Iterator[_Shard]:
    count = -(-len(rows) // size)
    for number in range(count):
        yield _Shard(
            file=f"shards/{split}-{number:05d}-of-{count:05d}.h5",
            split=split,
            members=rows[number * size : (number + 1) * size],
        )


def _standing(
    shard: _Shard, placement: Placement, event: Mapping[str, Any] | None
) -> ShardRecord | None:
    """Return the record of a shard that stands and is proven, else make room for it."""
    path = placement.out / shard.file
    if not path.exists():
        return None
    if event is not None and event["content"] == shard.content:
        record = ShardRecord(**{key: event[key] for key in ("file", "sha256", "rows", "split")})
        if file_sha256(path) == record.sha256:
            return record
    # Finished but never journalled, or of an input that has changed since: it is made anew.
    path.unlink()
    return None


def _written(shard: _Shard, placement: Placement) -> ShardRecord:
    record = write_shard(
        placement.out / shard.file,
        [(case_file, number) for _, case_file, number in shard.members],
        layout=placement.layout,
        split=shard.split,
        name=placement.recipe.name,
        classes=placement.recipe.classes,
        workspace=placement.workspace,
    )
    placement.journal.append({"event": "shard", "content": shard.content, **asdict(record)})
    return record
