"""Keyed pseudonyms: no identifier survives, and nobody without the key can test a guess.

A patient number has few digits, so a plain hash of it is undone by trying them all. Every pseudonym
here is an HMAC under a key of 32 random bytes that stays outside the data set. Patients, studies,
series and files have separate domains, so equal texts in two domains give unrelated pseudonyms.
Losing the key makes a data set unlinkable for good; giving the same key to two builds lets them
agree.
"""

import base64
import hashlib
import hmac
import os
import secrets
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from preprocessing.errors import FileError, HeaderError, OutputError

KEY_BYTES = 32
PSEUDONYM_BYTES = 10  # 80 bits: 16 base32 characters, no padding
KEY_DISTINCT_BYTES = 8  # 32 random bytes hold fewer distinct values once in 10^30 keys
KEYWORDS = {
    "patient": "PatientID (0010,0020)",
    "study": "StudyInstanceUID (0020,000D)",
    "series": "SeriesInstanceUID (0020,000E)",
    "file": "the file's place in the input folder",
}


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Turns identifiers into 16 lower-case base32 characters under one key.

    Attributes
    ----------
    key
        32 secret bytes. Not part of ``repr``.

    Raises
    ------
    FileError
        ``KEY_LENGTH`` or ``KEY_WEAK`` where the key is none that ``create_key`` could have made.

    References
    ----------
    RFC 2104 (HMAC); DICOM PS3.15 Annex E (de-identification).
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_key(self.key)

    @property
    def key_id(self) -> str:
        """First 8 hex digits of a hash of the key: tells two keys apart, reveals neither."""
        return hashlib.sha256(b"key-id|" + self.key).hexdigest()[:8]

    def patient(self, patient_id: str) -> str:
        """Return the pseudonym of a ``PatientID``, blind to padding and Unicode spelling.

        Raises
        ------
        HeaderError
            ``IDENTIFIER_EMPTY``: without it all nameless patients would become one.
        """
        return self._pseudonym("patient", _normalised(patient_id))

    def study(self, uid: str) -> str:
        """Return the pseudonym of a ``StudyInstanceUID``; raises as ``patient`` does."""
        return self._pseudonym("study", _normalised(uid))

    def series(self, uid: str) -> str:
        """Return the pseudonym of a ``SeriesInstanceUID``; raises as ``patient`` does."""
        return self._pseudonym("series", _normalised(uid))

    def file(self, relative_path: str | PurePath) -> str:
        """Return the pseudonym of a file's place below the input folder; every byte counts."""
        place = relative_path.as_posix() if isinstance(relative_path, PurePath) else relative_path
        return self._pseudonym("file", place)

    def _pseudonym(self, domain: str, value: str) -> str:
        if not value:
            raise HeaderError(
                "IDENTIFIER_EMPTY",
                f"{KEYWORDS[domain]} is empty: no pseudonym can tell this {domain} from others; "
                "give it a value or leave the files out",
            )
        message = f"v1|{domain}|{value}".encode("utf-8", "surrogatepass")
        digest = hmac.new(self.key, message, hashlib.sha256).digest()
        return base64.b32encode(digest[:PSEUDONYM_BYTES]).decode("ascii").lower()


def default_key_path() -> Path:
    """Return the place of the key in the user's cache folder, whether or not it exists."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification tells to ignore a relative path.
    cache = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    return cache / "dualwitness" / "pseudonym.key"


def create_key(path: Path) -> bytes:
    """Write 32 fresh secret bytes to a file that only its owner may read, and return them.

    The key appears under its name complete or not at all.

    Raises
    ------
    OutputError
        ``KEY_EXISTS`` where there is a key already: overwriting it would unlink every data set
        built with it. ``KEY_UNWRITABLE`` where the folder cannot be written.
    """
    key = secrets.token_bytes(KEY_BYTES)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_private(part, key)
        _name_key(part, path)
    except OSError as error:
        raise OutputError(
            "KEY_UNWRITABLE",
            f"the pseudonym key cannot be written ({error.strerror}): name a file in a folder you "
            "may write to with --pseudonym-key",
        ) from None
    return key


def load_key(path: Path) -> bytes:
    """Read a key made by ``create_key``.

    Raises
    ------
    FileError
        ``KEY_MISSING``, ``KEY_UNREADABLE``, ``KEY_PERMISSION`` (others may read it),
        ``KEY_LENGTH`` or ``KEY_WEAK``.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            key = stream.read(KEY_BYTES + 1) if stat.S_ISREG(mode) else b""
    except FileNotFoundError:
        raise FileError(
            "KEY_MISSING",
            "there is no pseudonym key at the place named: create one, or name the key that the "
            "other build used",
        ) from None
    except OSError as error:
        raise FileError(
            "KEY_UNREADABLE",
            f"the pseudonym key cannot be read ({error.strerror}): check who owns it",
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise FileError(
            "KEY_PERMISSION",
            f"the pseudonym key has mode {stat.S_IMODE(mode):04o}, so others may read it and undo "
            "the pseudonyms: chmod 600 the key file",
        )
    _check_key(key)
    return key


def load_or_create_key(path: Path) -> bytes:
    """Read the key, or make one where there is none; two builders at once agree on one key."""
    if not path.exists():
        try:
            return create_key(path)
        except OutputError as error:
            if error.code != "KEY_EXISTS":
                raise
    return load_key(path)


def refuse_inside(path: Path, out: Path) -> None:
    """Refuse a key inside the data set, which would travel with what it protects.

    Raises
    ------
    OutputError
        ``KEY_INSIDE_OUTPUT``, also through symbolic links.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise OutputError(
            "KEY_INSIDE_OUTPUT",
            "the pseudonym key lies inside the output folder and would be handed on with the data "
            "set: name a place outside it with --pseudonym-key",
        )


def _normalised(identifier: str) -> str:
    # PS3.5: leading and trailing spaces of LO are padding; UIDs are padded with NUL.
    return unicodedata.normalize("NFC", identifier).strip(" \t\r\n\0")


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        seen = f"{len(key)}" if len(key) <= KEY_BYTES else f"more than {KEY_BYTES}"
        raise FileError(
            "KEY_LENGTH",
            f"a pseudonym key has {KEY_BYTES} bytes, this one {seen}: it is damaged or another "
            "file was named",
        )
    if len(set(key)) < KEY_DISTINCT_BYTES:
        raise FileError(
            "KEY_WEAK",
            f"the pseudonym key has only {len(set(key))} distinct bytes and can be guessed: "
            "create one with random bytes",
        )


def _name_key(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except FileExistsError:
        raise OutputError(
            "KEY_EXISTS",
            "a pseudonym key is there already: use it, or name another file; a new key gives "
            "every patient a new pseudonym",
        ) from None
    finally:
        part.unlink()


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)
