"""What lies in a folder of ChestX-ray14: images by name, tables, lists, and files of no use.

The release comes as twelve archives that people unpack in one folder or in twelve, with tables of
2017 and of 2020 side by side, and macOS leaves its own files between them. Files are known by name.
"""

import filecmp
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.errors import LabelError

ENTRIES, BOXES, TRAIN_LIST, TEST_LIST = "entries", "boxes", "train_val", "test"
NEWEST = "v2020"
"""In the name of the table that corrects the one of 2017."""
_NAMES = {
    ENTRIES: ("data_entry", ".csv"),
    BOXES: ("bbox_list", ".csv"),
    TRAIN_LIST: ("train_val_list", ".txt"),
    TEST_LIST: ("test_list", ".txt"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Files by what they are.

    Attributes
    ----------
    images
        File name to its place, where one or several equal files have the name.
    ambiguous
        File name to places, where different files have the name.
    tables
        ``entries``, ``boxes``, ``train_val``, ``test`` to the file, where there is one.
    skipped
        Files that are no images of their own: reason to count.
    """

    images: Mapping[str, Path] = field(repr=False)
    ambiguous: Mapping[str, tuple[Path, ...]] = field(repr=False)
    tables: Mapping[str, Path] = field(repr=False)
    skipped: Counter[str]


def sort_files(files: Iterable[Path]) -> Folder:
    """Sort files by name; contents are compared only where two files have one name.

    Raises
    ------
    LabelError
        ``CXR_TABLES_DIFFER``: two tables or lists of one kind say different things.
    """
    images: dict[str, list[Path]] = defaultdict(list)
    tables: dict[str, list[Path]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    for path in files:
        kind = _table_kind(path)
        if path.name.startswith("."):
            skipped["HIDDEN"] += 1
        elif path.suffix.lower() == ".png":
            images[path.name].append(path)
        elif kind:
            tables[kind].append(path)
            skipped["TABLE"] += 1
        else:
            skipped["NOT_PNG"] += 1
    ambiguous = {name: tuple(paths) for name, paths in images.items() if not _are_equal(paths)}
    single = {name: paths[0] for name, paths in images.items() if name not in ambiguous}
    skipped["SAME_IMAGE_AGAIN"] = sum(len(images[name]) - 1 for name in single)
    return Folder(
        images=single,
        ambiguous=ambiguous,
        tables={kind: _one(kind, paths) for kind, paths in tables.items()},
        skipped=+skipped,
    )


def _table_kind(path: Path) -> str:
    name = path.name.lower()
    kinds = (kind for kind, (start, end) in _NAMES.items() if name.startswith(start))
    return next((kind for kind in kinds if name.endswith(_NAMES[kind][1])), "")


def _one(kind: str, paths: Sequence[Path]) -> Path:
    newest = [path for path in paths if NEWEST in path.name.lower()] or list(paths)
    if not _are_equal(newest):
        start, end = _NAMES[kind]
        raise LabelError(
            "CXR_TABLES_DIFFER",
            f"the folder holds {len(newest)} files '{start}*{end}' that say different things: "
            "keep the release's own",
        )
    return newest[0]


def _are_equal(paths: Sequence[Path]) -> bool:
    try:
        return all(filecmp.cmp(paths[0], path, shallow=False) for path in paths[1:])
    except OSError:
        return False
