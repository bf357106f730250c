"""What a build did, line by line, for whoever asks later; names nobody.

A failure is logged as the kind of error and the functions it went through: the text of an error may
hold a path, and a path may hold a name.
"""

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOG = "build.log.jsonl"


class BuildLog:
    """Appends events to ``build.log.jsonl``."""

    def __init__(self, out: Path) -> None:
        self._path = out / LOG
        self._start = time.monotonic()

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with the time and the seconds since the build was started."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._start, 3),
            "event": event,
            **facts,
        }
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, sort_keys=False) + "\n")

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Log how an error came about, and let it pass."""
        try:
            yield
        except BaseException as error:
            frames = [
                f"{Path(frame.filename).stem}:{frame.name}:{frame.lineno}"
                for frame in traceback.extract_tb(error.__traceback__)
            ]
            self.write("failed", error=type(error).__name__, trace=frames)
            raise
