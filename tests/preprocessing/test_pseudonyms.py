import base64
import hashlib
import os
import pickle
import re
import stat
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import FileError, HeaderError, OutputError
from preprocessing.pseudonyms import (
    Pseudonyms,
    create_key,
    default_key_path,
    load_key,
    load_or_create_key,
    refuse_inside,
)

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))


def slow_hmac(key: bytes, message: bytes) -> bytes:
    """RFC 2104 in its own words: H(K xor opad, H(K xor ipad, text)), block of 64 bytes."""
    padded = key + bytes(64 - len(key))
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in padded) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in padded) + inner).digest()


@pytest.mark.parametrize("domain", ["patient", "study", "series", "file"])
def test_equals_the_rfc_written_out(domain):
    expected = base64.b32encode(slow_hmac(KEY, f"v1|{domain}|1.2.840".encode())[:10])
    assert getattr(Pseudonyms(KEY), domain)("1.2.840") == expected.decode().lower()


@given(st.text(min_size=1).filter(lambda text: text.strip(" \t\r\n\0")))
def test_form_and_key_dependence(text):
    name = Pseudonyms(KEY).patient(text)
    assert re.fullmatch(r"[a-z2-7]{16}", name)
    assert name != Pseudonyms(OTHER).patient(text)


@given(st.sets(st.text("0123456789", min_size=1, max_size=4), min_size=2, max_size=50))
def test_distinct_numbers_and_domains_stay_distinct(numbers):
    names = Pseudonyms(KEY)
    made = {f(n) for n in numbers for f in (names.patient, names.study, names.series, names.file)}
    assert len(made) == 4 * len(numbers)


@pytest.mark.parametrize(
    ("one", "other"),
    [("A12", " A12 "), ("A12", "A12\0"), ("Ju\u0308rgen", "J\u00fcrgen"), ("7", "\t7\r\n")],
)
def test_padding_and_unicode_spelling_do_not_split_a_patient(one, other):
    assert Pseudonyms(KEY).patient(one) == Pseudonyms(KEY).patient(other)


@pytest.mark.parametrize(("one", "other"), [("A12", "a12"), ("12", "012"), ("1 2", "12")])
def test_different_identifiers_are_not_merged(one, other):
    assert Pseudonyms(KEY).patient(one) != Pseudonyms(KEY).patient(other)


def test_a_file_name_counts_byte_by_byte():
    names = Pseudonyms(KEY)
    assert names.file("a/b ") != names.file("a/b")
    assert names.file(PurePosixPath("a/b")) == names.file("a/b")
    assert names.file(os.fsdecode(b"a/\xff")) != names.file(os.fsdecode(b"a/\xfe"))


@pytest.mark.parametrize(
    ("domain", "keyword"),
    [
        ("patient", r"PatientID \(0010,0020\)"),
        ("study", r"StudyInstanceUID \(0020,000D\)"),
        ("series", r"SeriesInstanceUID \(0020,000E\)"),
    ],
)
@pytest.mark.parametrize("empty", ["", "  ", "\0"])
def test_empty_identifier_is_refused(domain, keyword, empty):
    with pytest.raises(HeaderError, match=keyword) as caught:
        getattr(Pseudonyms(KEY), domain)(empty)
    assert caught.value.code == "IDENTIFIER_EMPTY"


def test_key_stays_out_of_repr_and_key_id():
    names = Pseudonyms(KEY)
    assert str(KEY) not in repr(names)
    assert KEY.hex()[:8] not in repr(names)
    assert names.key_id == hashlib.sha256(b"key-id|" + KEY).hexdigest()[:8]
    assert names.key_id != Pseudonyms(OTHER).key_id


def test_survives_pickling_to_a_worker():
    names = Pseudonyms(KEY)
    assert pickle.loads(pickle.dumps(names)).patient("1") == names.patient("1")


@pytest.mark.parametrize("key", [b"", KEY[:31], KEY + b"x"])
def test_wrong_length_is_refused(key):
    with pytest.raises(FileError, match="a pseudonym key has 32 bytes, this one") as caught:
        Pseudonyms(key)
    assert caught.value.code == "KEY_LENGTH"


def test_guessable_key_is_refused():
    with pytest.raises(FileError, match="only 1 distinct bytes and can be guessed") as caught:
        Pseudonyms(bytes(32))
    assert caught.value.code == "KEY_WEAK"


def test_created_key_is_private_and_comes_back(tmp_path):
    path = tmp_path / "new" / "pseudonym.key"
    key = create_key(path)
    assert load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["pseudonym.key"]
    assert create_key(tmp_path / "other") != key


def test_an_existing_key_is_never_overwritten(tmp_path):
    path = tmp_path / "pseudonym.key"
    key = create_key(path)
    with pytest.raises(OutputError, match="a pseudonym key is there already") as caught:
        create_key(path)
    assert caught.value.code == "KEY_EXISTS"
    assert load_or_create_key(path) == key


def test_load_or_create_makes_one_where_there_is_none(tmp_path):
    path = tmp_path / "pseudonym.key"
    assert load_or_create_key(path) == load_key(path)


def test_losing_the_race_to_create_a_key_gives_the_winners_key(tmp_path, monkeypatch):
    path = tmp_path / "pseudonym.key"
    key = create_key(path)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert load_or_create_key(path) == key


def test_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot be written .*--pseudonym-key") as caught:
        create_key(tmp_path / "file" / "pseudonym.key")
    assert caught.value.code == "KEY_UNWRITABLE"
    with pytest.raises(OutputError, match="cannot be written"):
        load_or_create_key(tmp_path / "file" / "pseudonym.key")


def test_missing_and_unreadable_keys_are_refused(tmp_path):
    with pytest.raises(FileError, match="there is no pseudonym key") as caught:
        load_key(tmp_path / "none")
    assert caught.value.code == "KEY_MISSING"
    with pytest.raises(FileError, match=r"the pseudonym key cannot be read \(Is a dir") as caught:
        load_key(tmp_path)
    assert caught.value.code == "KEY_UNREADABLE"


def test_key_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "pseudonym.key"
    create_key(path)
    path.chmod(0o640)
    with pytest.raises(FileError, match="mode 0640, so others may read it") as caught:
        load_key(path)
    assert caught.value.code == "KEY_PERMISSION"


@pytest.mark.parametrize("content", [b"", KEY[:5], KEY * 1000])
def test_garbage_in_the_key_file_is_refused(tmp_path, content):
    path = tmp_path / "pseudonym.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(FileError, match="it is damaged or another file was named"):
        load_key(path)


def test_key_inside_the_output_is_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    refuse_inside(tmp_path / "outside.key", out)
    for inside in (out / "k", out / "deep" / "k", tmp_path / "link" / "k", out / "x" / ".." / "k"):
        with pytest.raises(OutputError, match="inside the output folder") as caught:
            refuse_inside(inside, out)
        assert caught.value.code == "KEY_INSIDE_OUTPUT"


def test_default_place_follows_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_key_path() == tmp_path / "dualwitness" / "pseudonym.key"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_key_path() == Path.home() / ".cache" / "dualwitness" / "pseudonym.key"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_key_path() == Path.home() / ".cache" / "dualwitness" / "pseudonym.key"
