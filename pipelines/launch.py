"""Which of several processes this one is, as a launcher such as torchrun says in the environment.

Knows no torch, so that the command line can ask before it loads anything.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from pipelines.errors import UsageError

REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One process among those that train together.

    Attributes
    ----------
    rank
        Its number, from 0; number 0 leads: it alone writes files and speaks.
    world
        How many processes there are on all machines.
    local_rank, local_world
        The same among the processes of its own machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world == 1

    def positions(self, total: int) -> Int64[np.ndarray, " m"]:
        """Rows of a table of ``total`` that this process works on; equally many in each process.

        Together they are all rows. Some are worked on twice where their number does not divide.
        """
        each = -(-total // self.world)
        return (np.arange(each, dtype=np.int64) * self.world + self.rank) % max(1, total)


def launched(environment: Mapping[str, str] | None = None) -> Launch:
    """Read the variables that torchrun sets; without all of them a process is alone.

    Raises
    ------
    UsageError
        ``BAD_LAUNCH`` where they are no such numbers.
    """
    found = os.environ if environment is None else environment
    if any(name not in found for name in REQUIRED):
        return Launch()
    try:
        rank, world = int(found["RANK"]), int(found["WORLD_SIZE"])
        local_world = int(found.get("LOCAL_WORLD_SIZE", world))
        local_rank = int(found.get("LOCAL_RANK", rank % max(1, local_world)))
    except ValueError:
        rank, world, local_rank, local_world = -1, 0, 0, 0
    if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
        seen = ", ".join(f"{name}={found[name]!r}" for name in REQUIRED[:2])
        raise UsageError(
            "BAD_LAUNCH",
            f"the environment says {seen}, which are no process and number of processes: start "
            "with torchrun, or unset RANK and WORLD_SIZE to train in one process",
        )
    return Launch(rank=rank, world=world, local_rank=local_rank, local_world=local_world)
