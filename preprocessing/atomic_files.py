"""Files that are there complete or not at all, and disk errors with a name.

A file is written under a ``.part`` name, synced, given its final name in one step, and the folder
is synced. A reader, a crash or a power cut finds the whole file or none.
"""

import errno
import filecmp
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocessing.errors import OutputError

SPACE_MARGIN = 1.2  # the file system's own records, and what others write meanwhile
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_RIGHT = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
CANNOT_RESERVE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
ZEROS = bytes(1 << 16)
NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn the operating system's errors into ``OutputError``.

    Raises
    ------
    OutputError
        ``DISK_FULL`` (space, quota or file size limit), ``READ_ONLY`` or ``DISK_ERROR``.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 reports a failed flush as RuntimeError
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        raise _output_error(_errno_of(error)) from None


@contextmanager
def writing(part: Path) -> Iterator[None]:
    """Remove ``part`` on the way out, and turn disk errors into ``OutputError``.

    After success the content has its final name and ``part`` is only a second name for it.

    Raises
    ------
    OutputError
        As ``disk_errors``.
    """
    with disk_errors():
        try:
            yield
        finally:
            part.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a small file in one visible step.

    Raises
    ------
    OutputError
        ``EXISTS`` where other content is there and ``replace`` is false; disk errors as in
        ``writing``.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(part):
        with part.open("wb") as stream:
            stream.write(content)
        publish(part, path, replace=replace)


def publish(part: Path, final: Path, *, replace: bool = False) -> None:
    """Sync a finished file, give it its final name and sync the folder.

    Without ``replace``, equal content under the final name counts as done: that is what a build
    killed just after this step finds when it is run again.

    Raises
    ------
    OutputError
        ``EXISTS`` where the final name is taken by other content.
    """
    sync(part)
    if replace:
        part.replace(final)
    else:
        _name_without_replacing(part, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(path: Path, size: int) -> None:
    """Claim disk space for a file up to ``size`` bytes, so that later writes find it.

    What the file holds stays; bytes past its end become zeros.
    """
    with path.open("ab") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno not in CANNOT_RESERVE:
                raise
            for _ in range(stream.tell(), size, len(ZEROS)):
                stream.write(ZEROS)


def require_space(path: Path, needed_bytes: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises
    ------
    OutputError
        ``DISK_FULL`` where fewer than 1.2 times ``needed_bytes`` are free for this user, or no new
        file can be made.
    """
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    state = os.statvfs(existing)
    free = state.f_bavail * state.f_frsize
    if free < needed_bytes * SPACE_MARGIN:
        raise OutputError(
            "DISK_FULL",
            f"the output needs about {needed_bytes * SPACE_MARGIN / 1e6:.0f} MB and "
            f"{free / 1e6:.0f} MB are free: free some space or name another --out",
        )
    if state.f_files and not state.f_favail:
        raise OutputError(
            "DISK_FULL",
            "the output's disk can hold no further file (no free inode): delete files you do not "
            "need or name another --out",
        )


def _name_without_replacing(part: Path, final: Path) -> None:
    try:
        os.link(part, final)
    except FileExistsError:
        _refuse_other_content(part, final)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        # No hard links here (FAT, some network disks): the output lock keeps this step single.
        if final.exists():
            _refuse_other_content(part, final)
        else:
            part.rename(final)


def _refuse_other_content(part: Path, final: Path) -> None:
    if not filecmp.cmp(part, final, shallow=False):
        raise OutputError(
            "EXISTS",
            "the output holds a file of this name with other content, which is never overwritten: "
            "name another --out, or remove the old data set first",
        )


def _errno_of(error: BaseException | None) -> int:
    """Return the first known cause; HDF5 tells some in its text only."""
    while error is not None:
        told = re.search(r"errno = (\d+)", str(error))
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if told:
            return int(told[1])
        error = error.__context__
    return errno.EIO


def _output_error(number: int) -> OutputError:
    reason = os.strerror(number)
    if number in NO_SPACE:
        return OutputError(
            "DISK_FULL",
            f"the output cannot be written ({reason}): free some space and run the same command "
            "again, finished work is kept",
        )
    if number in NO_RIGHT:
        return OutputError(
            "READ_ONLY",
            f"the output cannot be written ({reason}): check the folder's owner and mode, or name "
            "another --out",
        )
    return OutputError(
        "DISK_ERROR",
        f"the output cannot be written ({reason}): check the disk and run the same command again, "
        "finished work is kept",
    )
