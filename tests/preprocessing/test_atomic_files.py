import errno
import os
import resource
from pathlib import Path

import pytest

from preprocessing.atomic_files import (
    atomic_write,
    disk_errors,
    publish,
    require_space,
    writing,
)
from preprocessing.errors import OutputError


@pytest.fixture
def small_files():
    """Refuse files over 4096 bytes in this process: what a full disk does, without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_written_file_is_there_whole_and_alone(tmp_path):
    atomic_write(tmp_path / "a", b"first")
    atomic_write(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


def test_without_replace_equal_content_counts_as_written(tmp_path):
    atomic_write(tmp_path / "a", b"first", replace=False)
    atomic_write(tmp_path / "a", b"first", replace=False)
    with pytest.raises(OutputError, match="of this name with other content") as caught:
        atomic_write(tmp_path / "a", b"second", replace=False)
    assert caught.value.code == "EXISTS"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("taken", [False, True])
def test_file_systems_without_hard_links(tmp_path, monkeypatch, taken):
    def no_link(source, target):
        raise OSError(errno.EOPNOTSUPP, "no hard links")

    monkeypatch.setattr(os, "link", no_link)
    if taken:
        (tmp_path / "a").write_bytes(b"other")
        with pytest.raises(OutputError, match="with other content"):
            atomic_write(tmp_path / "a", b"first", replace=False)
    else:
        atomic_write(tmp_path / "a", b"first", replace=False)
        assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_other_link_errors_are_disk_errors(tmp_path, monkeypatch):
    def broken(source, target):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "link", broken)
    (tmp_path / "a.part").write_bytes(b"x")
    with pytest.raises(OutputError, match="check the disk"), disk_errors():
        publish(tmp_path / "a.part", tmp_path / "a")


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path):
    atomic_write(tmp_path / "a", b"old")
    with pytest.raises(OutputError, match="finished work is kept") as caught:
        atomic_write(tmp_path / "a", bytes(5000))
    assert caught.value.code == "DISK_FULL"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "DISK_FULL"),
        (errno.EDQUOT, "DISK_FULL"),
        (errno.EROFS, "READ_ONLY"),
        (errno.EACCES, "READ_ONLY"),
        (errno.EIO, "DISK_ERROR"),
    ],
)
def test_disk_errors_have_names_and_no_paths(tmp_path, number, code):
    part = tmp_path / "x.part"
    part.write_bytes(b"")
    with pytest.raises(OutputError, match="the output cannot be written") as caught, writing(part):
        raise OSError(number, "said by the system", str(part))
    assert caught.value.code == code
    assert str(tmp_path) not in str(caught.value)
    assert not part.exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [("unable to extend file, errno = 28, /secret", "DISK_FULL"), ("can't close", "DISK_ERROR")],
)
def test_errors_that_hdf5_tells_in_words_only(text, code):
    with pytest.raises(OutputError, match="the output cannot be written") as caught, disk_errors():
        raise RuntimeError(text)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_the_first_known_cause_counts():
    def fail_twice():
        try:
            raise OSError(errno.ENOSPC, "full")
        finally:
            raise RuntimeError("can't close")

    with pytest.raises(OutputError, match="free some space") as caught, disk_errors():
        fail_twice()
    assert caught.value.code == "DISK_FULL"


def test_programming_errors_are_not_dressed_up():
    with pytest.raises(NotImplementedError), disk_errors():
        raise NotImplementedError


def test_space_is_required_with_a_margin(tmp_path, monkeypatch):
    class State:
        f_bavail, f_frsize, f_files, f_favail = 12, 1000, 10, 10

    monkeypatch.setattr(os, "statvfs", lambda place: State)
    require_space(tmp_path / "not" / "yet", 10_000)
    with pytest.raises(OutputError, match=r"needs about 0 MB and 0 MB are free") as caught:
        require_space(tmp_path, 10_001)
    assert caught.value.code == "DISK_FULL"
    State.f_favail = 0
    with pytest.raises(OutputError, match="no free inode") as caught:
        require_space(tmp_path, 1)
    assert caught.value.code == "DISK_FULL"


def test_a_real_disk_has_no_exabyte(tmp_path):
    require_space(tmp_path, 1)
    with pytest.raises(OutputError, match="free some space or name another --out"):
        require_space(tmp_path, 10**18)
