"""What has been done so far (``Journal``), and who may do more (``OutputLock``).

The journal is a text file of one record per line::

    <bytes of the record, 8 hex> <CRC-32 of the record, 8 hex> <record as JSON>

Each line is synced before ``append`` returns. A crash can tear the last line only; anything else
that does not check is damage, and is refused rather than guessed at.
"""

import errno
import fcntl
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from preprocessing.atomic_files import disk_errors, sync
from preprocessing.errors import OutputError, ShardError

HEADER_BYTES = 18  # two fields of 8 hex digits, a blank after each
NO_FLOCK = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
SECONDS_TO_LET_GO = 3.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Journal:
    """An append-only record of finished work, safe against ``kill -9`` and power cuts.

    Parameters
    ----------
    path
        Created by the first ``append``. One writer at a time: hold the ``OutputLock``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end: int | None = None  # bytes known to be good; None until the file was read

    def replay(self) -> tuple[dict[str, Any], ...]:
        """Return all records, oldest first, without a torn last line.

        Raises
        ------
        ShardError
            ``JOURNAL_CORRUPT`` where a line before the last does not check.
        """
        content = self._path.read_bytes() if self._path.exists() else b""
        records: list[dict[str, Any]] = []
        end = 0
        for line in content.splitlines(keepends=True):
            record = _record_of(line)
            if record is None:
                _refuse_unless_torn(content[end:])
                break
            records.append(record)
            end += len(line)
        self._end = end
        return tuple(records)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record of plain JSON values and wait until the disk holds it.

        Raises
        ------
        OutputError
            ``DISK_FULL``, ``READ_ONLY`` or ``DISK_ERROR``; the journal is as before the call.
        """
        if self._end is None:
            self.replay()
        body = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        line = b"%08x %08x %b\n" % (len(body), zlib.crc32(body), body)
        is_new = not self._path.exists()
        with disk_errors():
            self._write(self._end or 0, line)
            if is_new:
                sync(self._path.parent)
        self._end = (self._end or 0) + len(line)

    def _write(self, end: int, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, end)  # what a crash tore off
            try:
                _write_all(descriptor, line, offset=end)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


class OutputLock:
    """Keeps a second builder out of a folder; a context manager.

    The kernel drops the lock when its holder dies, however it dies. Worker processes forked by the
    holder do not keep it. ``OUT/.lock`` holds the process number and the boot identifier (no host
    or user name) for the message. Where the file system has no ``flock``, a folder ``OUT/.lock.d``
    stands in, and one left by a crash has to be removed by hand.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._file = out / ".lock"
        self._folder = out / ".lock.d"
        self._descriptor: int | None = None
        self._owner: int | None = None

    def acquire(self) -> None:
        """Take the lock or refuse at once; makes the folder where there is none.

        Raises
        ------
        OutputError
            ``LOCKED`` where another builder, in this process or another, holds it.
        """
        with disk_errors():
            self._out.mkdir(parents=True, exist_ok=True)
            if not self._lock_file():
                self._lock_folder()
        self._owner = os.getpid()
        # A forked worker that outlives a killed builder must not keep the folder locked.
        os.register_at_fork(after_in_child=self._forget)

    def release(self) -> None:
        """Give the lock back; nothing to do where it is not held, as in a forked worker."""
        if self._owner != os.getpid():
            return
        self._owner = None
        if self._descriptor is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        self._file.unlink(missing_ok=True)
        self._forget()

    def __enter__(self) -> "OutputLock":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _lock_file(self) -> bool:
        until = time.monotonic() + SECONDS_TO_LET_GO
        while True:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                owner = _text_of(self._file)
                if _is_gone(owner) and time.monotonic() < until:
                    time.sleep(0.01)
                    continue
                raise _locked(owner, "wait until it is done") from None
            except OSError as error:
                os.close(descriptor)
                if error.errno not in NO_FLOCK:
                    raise
                return False
            if _is_same_file(descriptor, self._file):
                break
            os.close(descriptor)  # its holder removed it between our two steps: try the new one
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _identity())
        self._descriptor = descriptor
        return True

    def _lock_folder(self) -> None:
        try:
            self._folder.mkdir()
        except FileExistsError:
            raise _locked(
                _text_of(self._folder / "owner"),
                "wait until it is done, or remove the folder .lock.d in the output where that "
                "process is gone",
            ) from None
        (self._folder / "owner").write_bytes(_identity())

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _record_of(line: bytes) -> dict[str, Any] | None:
    body = line[HEADER_BYTES:-1]
    header = b"%08x %08x " % (len(body), zlib.crc32(body))
    if line[:HEADER_BYTES] != header or line[-1:] != b"\n":
        return None
    try:
        record = json.loads(body)
    except ValueError:  # checksummed and yet no JSON: not written by a journal
        return None
    return record if isinstance(record, dict) else None


def _refuse_unless_torn(tail: bytes) -> None:
    """Refuse a tail that is longer than the one line that a crash can have torn."""
    first, _, rest = tail.partition(b"\n")
    declared = first[:8]
    is_number = len(declared) == 8 and all(digit in b"0123456789abcdef" for digit in declared)
    is_longer = is_number and len(first) > HEADER_BYTES + int(declared, 16)
    if rest or is_longer:
        raise ShardError(
            "JOURNAL_CORRUPT",
            "a line in the middle of the build's journal does not match its checksum, so what is "
            "finished cannot be known: remove the output's temporary folder and build again",
        )


def _write_all(descriptor: int, content: bytes, *, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _identity() -> bytes:
    boot = BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.exists() else "-"
    return f"{os.getpid()} {boot}\n".encode("ascii")


def _is_gone(owner: str) -> bool:
    """Say whether a holder has ended for certain: workers that it had just forked let go soon."""
    number, _, boot = owner.strip().partition(" ")
    if not number.isdecimal() or boot != _identity().decode("ascii").split()[1]:
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _locked(owner: str, hint: str) -> OutputError:
    number = owner.split(" ")[0]
    process = f" (process {number})" if number.isdecimal() else ""
    return OutputError(
        "LOCKED",
        f"another builder{process} is writing to this output: {hint}, or name another --out",
    )
