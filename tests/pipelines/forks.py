"""Processes to be killed that need not import everything anew: forks of one that has it loaded."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = """
import os
import sys

{code}

if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setsid()
            print(os.getpid(), flush=True)
            run(*line.rstrip("\\n").split("\\t"))
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)
"""


class Forks:
    """One process after another, each of which calls ``run`` of the code with words of its own.

    Each is in a process group of its own, so that what it starts dies with it.
    """

    def __init__(self, code: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER.format(code=code)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def begin(self, *words: str | Path | int) -> int:
        """Begin and return the process."""
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(map(str, words)) + "\n")
        return int(self.said())

    def said(self) -> str:
        """Wait for the next line that is printed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that is forked ended by itself"
        return line.rstrip("\n")

    def end(self) -> int:
        """Wait for the end and return the status, as ``os.waitpid`` gives it."""
        return int(self.said())

    def close(self) -> None:
        self._process.communicate(timeout=60)


def kill_group(process: int) -> None:
    """Kill a process and all in its group, if it has not ended by itself."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
