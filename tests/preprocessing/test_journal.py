import errno
import fcntl
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import OutputError, ShardError
from preprocessing.journal import Journal, OutputLock

ROOT = Path(__file__).parents[2]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.lists(st.dictionaries(st.text(), PLAIN | st.text(), max_size=4), max_size=6)


def written(path: Path, records) -> bytes:
    journal = Journal(path)
    for record in records:
        journal.append(record)
    return path.read_bytes() if path.exists() else b""


@given(RECORDS)
def test_replay_gives_back_what_was_appended(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    written(path, records)
    assert list(Journal(path).replay()) == records


def test_a_torn_last_line_is_dropped_wherever_it_was_cut(tmp_path):
    path = tmp_path / "journal.jsonl"
    records = [{"n": 1, "text": "é\n"}, {"n": 2}, {"n": 3, "more": "x" * 50}]
    content = written(path, records)
    last = content[:-1].rfind(b"\n") + 1
    for cut in range(last, len(content)):
        path.write_bytes(content[:cut])
        journal = Journal(path)
        assert list(journal.replay()) == records[:2]
        journal.append({"n": 4})
        assert list(Journal(path).replay()) == [*records[:2], {"n": 4}]


def test_zeros_that_a_power_cut_left_in_the_last_line_are_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    content = written(path, [{"n": 1}])
    path.write_bytes(content + bytes(40))
    assert list(Journal(path).replay()) == [{"n": 1}]


def test_damage_before_the_last_line_is_refused_at_every_bit(tmp_path):
    path = tmp_path / "journal.jsonl"
    content = written(path, [{"n": 1}, {"n": 2}, {"n": 3}])
    last = content[:-1].rfind(b"\n") + 1
    for place in range(last):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ShardError, match="in the middle of the build's journal") as caught:
                Journal(path).replay()
            assert caught.value.code == "JOURNAL_CORRUPT"


def test_a_checksummed_line_that_is_no_record_is_not_taken_for_one(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"00000002 d5a8de5f []\n00000001 8cdc1683 x\n")
    with pytest.raises(ShardError, match="does not match its checksum"):
        Journal(path).replay()


def test_append_without_replay_keeps_what_is_there(tmp_path):
    path = tmp_path / "journal.jsonl"
    written(path, [{"n": 1}])
    Journal(path).append({"n": 2})
    assert list(Journal(path).replay()) == [{"n": 1}, {"n": 2}]


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"n": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
    try:
        with pytest.raises(OutputError, match="the output cannot be written") as caught:
            journal.append({"text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "DISK_FULL"
    journal.append({"n": 2})
    assert list(Journal(tmp_path / "journal.jsonl").replay()) == [{"n": 1}, {"n": 2}]


APPENDER = """
import sys
from pathlib import Path
from preprocessing.journal import Journal
journal = Journal(Path(sys.argv[1]))
count = len(journal.replay())
print("ready", flush=True)
while True:
    journal.append({"n": count, "text": "x" * (count % 300)})
    count += 1
"""


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_kill_9_never_loses_a_record_before_the_last(tmp_path):
    path = tmp_path / "journal.jsonl"
    rng = random.Random(3)
    before = 0
    for _ in range(6):
        process = child(APPENDER, str(path))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.01, 0.1))
        ended(process)
        records = Journal(path).replay()
        assert [record["n"] for record in records] == list(range(len(records)))
        assert len(records) >= before
        before = len(records)
    assert before > 0


HOLDER = """
import os, sys, time
from pathlib import Path
from preprocessing.journal import OutputLock
if "slow" in sys.argv:  # a busy machine: it takes a while until the child comes to let go
    os.register_at_fork(after_in_child=lambda: time.sleep(0.5))
with OutputLock(Path(sys.argv[1])):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(float(sys.argv[3]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_builder_is_refused_and_told_who_is_there(tmp_path):
    out = tmp_path / "new" / "out"
    with OutputLock(out):
        assert (out / ".lock").read_text().split()[0] == str(os.getpid())
        with pytest.raises(OutputError, match=rf"process {os.getpid()}.*--out") as caught:
            OutputLock(out).acquire()
        assert caught.value.code == "LOCKED"
    assert list(out.iterdir()) == []
    with OutputLock(out):
        pass


def test_the_lock_tells_neither_host_nor_user(tmp_path):
    with OutputLock(tmp_path):
        text = (tmp_path / ".lock").read_text()
    assert os.uname().nodename not in text
    assert len(text.split()) == 2


@pytest.mark.parametrize("arguments", [[], ["fork", "8"], ["fork", "8", "slow"]])
def test_the_lock_dies_with_its_holder_even_if_a_forked_worker_lives(tmp_path, arguments):
    process = child(HOLDER, str(tmp_path), *arguments)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"process {process.pid}"):
            OutputLock(tmp_path).acquire()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with OutputLock(tmp_path):
            pass
    finally:
        ended(process)


FORKER = """
import os, sys
from pathlib import Path
from preprocessing.errors import OutputError
from preprocessing.journal import OutputLock
lock = OutputLock(Path(sys.argv[1]))
lock.acquire()
if os.fork() == 0:
    lock.release()
    os._exit(0)
os.wait()
try:
    OutputLock(Path(sys.argv[1])).acquire()
except OutputError as error:
    print(error.code, flush=True)
"""


def test_a_forked_worker_does_not_release_its_parents_lock(tmp_path):
    process = child(FORKER, str(tmp_path))
    assert process.stdout is not None
    assert process.stdout.readline() == "LOCKED\n"
    assert (tmp_path / ".lock").exists()
    ended(process)


def test_a_folder_stands_in_where_there_is_no_flock(tmp_path, monkeypatch):
    def no_flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    with OutputLock(tmp_path):
        with pytest.raises(OutputError, match=r"remove the folder \.lock\.d") as caught:
            OutputLock(tmp_path).acquire()
        assert caught.value.code == "LOCKED"
        (tmp_path / ".lock.d" / "owner").unlink()
        with pytest.raises(OutputError, match="another builder is writing"):
            OutputLock(tmp_path).acquire()
    assert not (tmp_path / ".lock.d").exists()
    with OutputLock(tmp_path):
        pass


def test_other_lock_errors_are_disk_errors(tmp_path, monkeypatch):
    def broken(descriptor, operation):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OutputError, match="check the disk") as caught:
        OutputLock(tmp_path).acquire()
    assert caught.value.code == "DISK_ERROR"


def test_a_lock_file_replaced_while_waiting_is_not_trusted(tmp_path, monkeypatch):
    real = fcntl.flock
    calls = []

    def releasing(descriptor, operation):
        real(descriptor, operation)
        calls.append(descriptor)
        if len(calls) == 1:  # the former holder removes its file just before we get the lock
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", releasing)
    with OutputLock(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / ".lock").exists()


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="the output cannot be written"):
        OutputLock(tmp_path / "file").acquire()
