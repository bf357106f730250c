"""Two processes that train together on a CPU, one launch for all tests: ``main(DATA, OUT)``.

What each of them found is left in OUT for the tests to look at.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from monai.engines.trainer import SupervisedTrainer
from torch import distributed, nn

from models.networks import Classifier, build
from models.statistics import remeasure
from pipelines import console, handlers, train
from pipelines.assemble import Forward, to_device
from pipelines.cli import app
from pipelines.distributed import Processes, joined
from pipelines.errors import DivergedError, PeerFailed, UsageError
from pipelines.step import Step

LOADED_ONCE = (console, train)  # before the processes part, each of which would load them
CPU = torch.device("cpu")
WORLD, PICTURES, STEPS = 2, 5, 3  # five pictures are three and two
CASES = MappingProxyType(
    {
        "no-batch-statistics": {"network": "vit-narrow", "variant": "baseline"},
        "in-parts": {"network": "vit-narrow", "variant": "baseline", "parts": 2},
        "batch-normalisation": {"network": "unet-encoder-narrow", "variant": "exact"},
        "idle-parameters": {"network": "resnet10-narrow", "variant": "dual", "alpha": 0.0},
    }
)
"""Networks and how they are trained; the witness has no part in the loss without a penalty."""
TRAINING = (
    "--network=unet-encoder-narrow", "--variant=exact", "--epochs=2", "--json",
    "--set=batch_size=5", "--set=bootstrap=20", "--set=optimizer=sgd", "--set=learning_rate=0.01",
    "--set=checkpoint_iterations=1", "--set=device=cpu", "--set=workers=1",
)  # fmt: skip
INTERRUPTED_AT = 2


def pictures(step: int) -> dict[str, torch.Tensor]:
    """One global batch, the same in every process."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn((PICTURES, 1, 32, 32), generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (PICTURES,), generator=generator)
    return {"image": images, "label": labels}


def share(processes: Processes) -> Iterator[dict[str, torch.Tensor]]:
    """This process's share of the batches."""
    rows = slice(processes.launch.rank, None, processes.world)
    for step in range(STEPS):
        yield {name: values[rows] for name, values in pictures(step).items()}


def trained(processes: Processes, case: str) -> dict[str, Any]:
    """Weights, buffers, last gradients and mean losses after some steps of a case."""
    wanted = {"parts": 1, "alpha": 1.0, **CASES[case]}
    torch.manual_seed(processes.launch.rank)  # each process draws other first weights
    network = build(
        str(wanted["network"]), variant=str(wanted["variant"]), in_channels=1, classes=3,
        image_size=32,
    ).double()  # fmt: skip
    if processes.leads:
        _first_weights(network)
    processes.same_weights(network)
    processes.synchronised(network, CPU)
    losses = handlers.Losses(
        alpha=float(wanted["alpha"]), class_weights=None, label_smoothing=0.0, processes=processes
    )
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=share(processes),
        network=processes.joint(
            network, called=network, device=CPU, penalised=float(wanted["alpha"]) > 0
        ),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=losses,
        epoch_length=STEPS,
        prepare_batch=to_device,
        iteration_update=Step(
            parts=int(wanted["parts"]),
            pictures=PICTURES / processes.world,
            device=CPU,
            precision="float32",
        ),
        inferer=Forward(CPU, "float32"),
        decollate=False,
    )
    trainer.run()
    found = {"losses": losses.means(), "state": _copied(network)}
    remeasure(network, (batch["image"] for batch in share(processes)))
    return found | {"measured": _copied(network), "gradients": _gradients(network)}


def _first_weights(network: Classifier) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, value in network.named_parameters():
        nn.init.normal_(value.data, std=0.2, generator=generator)
        if name.endswith("witness"):
            nn.init.zeros_(value.data)


def _copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _gradients(network: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: value.grad for name, value in network.named_parameters()}


def rejoined(processes: Processes, total: int) -> torch.Tensor:
    """What every process has once each has squared the rows that are its own."""
    index = torch.from_numpy(processes.launch.positions(total))
    return processes.rejoined(index.double()[:, None] ** 2, index)


def _called(out: Path, name: str, words: list[str]) -> None:
    """Call the command line as a shell would, and keep what it says and its exit code."""
    said, printed = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        try:
            app(words)
        except SystemExit as end:
            code = int(end.code or 0)
    text = f"{code}\n{printed.getvalue()}\n{said.getvalue()}"
    (out / f"{name}-{os.environ['RANK']}.txt").write_text(text)


def _laws(out: Path) -> None:
    with joined() as processes:
        found: dict[str, Any] = {case: trained(processes, case) for case in CASES}
        found["rejoined"] = {total: rejoined(processes, total) for total in (1, 4, 5)}
        found["first"] = processes.first(lambda: {"made by": processes.launch.rank})
        torch.save(found, out / f"laws-{processes.launch.rank}.pt")


def _refused_in_the_first(out: Path) -> None:
    def refuse() -> None:
        raise UsageError("TRIED", "process 0 refuses")

    ending = "nothing"
    try:
        with joined() as processes:
            processes.first(refuse)
    except (UsageError, PeerFailed) as error:
        ending = error.code
    (out / f"refused-{os.environ['RANK']}.txt").write_text(ending)


def _refused_in_the_second(data: Path, out: Path) -> None:
    """Process 1 refuses to go on after a step: its loss is said to be no number."""
    check = handlers.Losses._check

    def refuse(self: handlers.Losses, engine: Any) -> None:
        check(self, engine)
        if os.environ["RANK"] == "1" and engine.state.iteration > INTERRUPTED_AT:
            raise DivergedError("LOSS_NOT_FINITE", "process 1 refuses")

    handlers.Losses._check = refuse
    _called(out, "cut", ["train", f"--data={data}", f"--run={out / 'cut'}", *TRAINING])


def _killed(data: Path, out: Path) -> None:
    """Process 1 dies in the middle of a step, without a word."""

    def die(self: handlers.Losses, engine: Any) -> None:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    handlers.Losses._check = die
    _called(out, "killed", ["train", f"--data={data}", f"--run={out / 'killed'}", *TRAINING])


def _together(data: Path, out: Path) -> None:
    command = ["train", f"--data={data}", f"--run={out / 'run'}", *TRAINING]
    _laws(out)
    _refused_in_the_first(out)
    _called(out, "run", command)
    _called(out, "again", command)
    _called(out, "unknown", [*command, "--set=network=resnet81"])
    _called(out, "narrow", [*command[:2], f"--run={out / 'x'}", *TRAINING, "--set=batch_size=1"])


LAUNCHES: Mapping[str, Callable[[Path, Path], None]] = MappingProxyType(
    {
        "together": _together,
        "cut": _refused_in_the_second,
        "killed": _killed,
    }
)
"""What two processes do before they end; where one ends early, the other must end too."""


def _launch(work: Callable[[], None]) -> None:
    """Be the launcher: two processes, and the store where they meet."""
    children = []
    for rank in range(WORLD):
        receiving, sending = os.pipe()
        child = os.fork()
        if not child:
            _be(rank, os.read(receiving, 8).decode())
            work()
            os._exit(0)
        children.append((child, sending))
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=2)
    )
    for _, sending in children:
        os.write(sending, str(store.port).encode())
    for child, _ in children:
        os.waitpid(child, 0)


def _be(rank: int, port: str) -> None:
    """Take the place that torchrun would give."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)


def main(data: Path, out: Path) -> None:
    """Launch one pair after the other.

    Every process is forked before its parent has computed anything, and so has no threads yet.
    """
    for work in LAUNCHES.values():
        launcher = os.fork()
        if not launcher:
            _launch(partial(work, data, out))
            os._exit(0)
        os.waitpid(launcher, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
