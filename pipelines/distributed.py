"""Several processes train one network on one global batch, and end as one process would have.

``batch_size`` is that of the global batch: order, classes and augmentation are those of one
process, of whose batch process ``r`` of ``w`` takes the pictures r, r + w, r + 2 w and so on. Each
process weighs its loss by its share of the pictures, and batch normalisation sees all of them, so
that the averaged gradient is that of the whole batch. The one exception is the variant
``dual-published``, whose penalty compares the pictures that a process holds with each other.

Process 0 alone writes files and speaks. Whichever process refuses first says why; the others end
with ``PeerFailed`` and say nothing.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from models.networks import Classifier
from models.records import Prediction
from models.scoped import evaluating
from models.synchronised import synchronise
from pipelines.config import DataSummary
from pipelines.errors import DataError, PeerFailed, PeerLost, PipelineError, UsageError
from pipelines.launch import Launch, launched
from preprocessing.errors import PreprocessingError

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)
"""Longer than process 0 works alone: it measures the training split and scores the test split."""
COUPLING_VARIANTS = ("dual-published",)
FAILED = ("PEER_FAILED", "another process of this training refused, and says why")
LOST = (
    "PEER_LOST",
    "another process of this training died or does not answer: what it said last, or its machine's "
    "log, tells why (out of memory is the commonest); then go on with --resume",
)


@final
class Processes:
    """The processes that train together, as seen by one of them.

    Parameters
    ----------
    launch
        Which of them this one is; alone, if not given.
    """

    def __init__(self, launch: Launch | None = None) -> None:
        self.launch = launch or Launch()

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.launch.world

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.launch.leads

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.launch.alone

    def device(self, chosen: torch.device) -> torch.device:
        """Give each process of a machine a GPU of its own.

        Raises
        ------
        UsageError
            ``TOO_FEW_GPUS``.
        """
        if self.alone or chosen.type != "cuda":
            return chosen
        count = torch.cuda.device_count()
        if self.launch.local_rank >= count:
            raise UsageError(
                "TOO_FEW_GPUS",
                f"{self.launch.local_world} processes were started on a machine with {count} GPUs, "
                f"and each needs its own: start torchrun with --nproc-per-node {count}",
            )
        return torch.device("cuda", self.launch.local_rank)

    def refuse_small_batch(self, width: int) -> None:
        """Refuse a global batch that does not give every process a picture.

        Raises
        ------
        UsageError
            ``BATCH_TOO_SMALL``.
        """
        if width < self.world:
            raise UsageError(
                "BATCH_TOO_SMALL",
                f"the batch has {width} pictures for {self.world} processes, and each needs one: "
                f"set batch_size to {self.world} or more (with as many training pictures), or "
                f"start at most {width} processes",
            )

    def refuse_other_data(self, summary: DataSummary) -> None:
        """Refuse a data set that is not the one that process 0 has.

        Raises
        ------
        DataError
            ``DATA_DIFFERS``.
        """
        if self.first(lambda: summary) != summary:
            raise DataError(
                "DATA_DIFFERS",
                f"process {self.launch.rank} has another data set than process 0: copy the same "
                "one to every machine, under the path that --data names",
            )

    def remarks(self, *, variant: str) -> tuple[str, ...]:
        """Say what training in several processes changes about a run."""
        if self.alone:
            return ()
        found = [f"trained by {self.world} processes, each on its share of every batch"]
        if variant in COUPLING_VARIANTS:
            found.append(
                f"'{variant}' compares the pictures of a batch with each other, here those that "
                "one process holds: its gradients are not those of one process"
            )
        return tuple(found)

    def rejoined(
        self, values: Shaped[Tensor, "m ..."], index: Int64[Tensor, " m"]
    ) -> Shaped[Tensor, "n ..."]:
        """Put together, in every process, what each found on its ``Launch.positions``.

        Parameters
        ----------
        index
            These positions, in the order of the values.
        """
        if self.alone:
            return values
        places = self._gathered(index.to(values.device))
        total = 1 + max(int(part.max()) for part in places)
        whole = values.new_empty((total, *values.shape[1:]))
        for part, found in zip(places, self._gathered(values), strict=True):
            whole[part] = found  # what was worked on twice is the last one's, in every process
        return whole

    def _gathered(self, values: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(values) for _ in range(self.world)]
        distributed.all_gather(parts, values.contiguous())
        return parts

    def summed(self, values: Tensor) -> Tensor:
        """Sum over the processes, the same in each."""
        if self.alone:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total

    def first(self, make: Callable[[], Value]) -> Value:
        """Let process 0 alone do or make something, and hand the result to all.

        Raises
        ------
        PeerFailed
            In the others, where ``make`` refuses in process 0.
        """
        if self.alone:
            return make()
        if not self.leads:
            return _received()
        try:
            value = make()
        except (PipelineError, PreprocessingError, OSError):
            _send(_REFUSED)
            raise
        _send((value,))
        return value

    def same_weights(self, network: nn.Module) -> None:
        """Give every process the weights and buffers that process 0 has."""
        if not self.alone:
            for value in network.state_dict().values():
                distributed.broadcast(value, src=0)

    def synchronised(self, network: Classifier, device: torch.device) -> None:
        """Let batch normalisation see the pictures of all processes."""
        if not self.alone:
            synchronise(network, fused=device.type == "cuda")

    def joint(
        self, network: Classifier, *, called: nn.Module, device: torch.device, penalised: bool
    ) -> nn.Module:
        """Wrap a network, so that its gradients are averaged over the processes.

        Parameters
        ----------
        called
            What calls it: itself, or its compiled form.
        penalised
            Whether the loss has the consistency penalty.
        """
        if self.alone:
            return called
        like = next(network.parameters())
        picture = like.new_zeros((1, network.in_channels, *network.image_size))
        return DistributedDataParallel(
            _Trained(called, penalised=penalised),
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=_has_idle(_Trained(network, penalised=penalised), picture),
            gradient_as_bucket_view=True,
        )


ALONE = Processes()


@final
class _Trained(nn.Module):
    """A network whose outputs have a gradient only where the loss has one.

    ``DistributedDataParallel`` waits for the gradients of all parameters behind its outputs.
    """

    def __init__(self, network: nn.Module, *, penalised: bool) -> None:
        super().__init__()
        self.network, self.penalised = network, penalised

    def forward(self, images: Float[Tensor, "b c h w"]) -> Prediction:
        found = self.network(images)
        maps = tuple(level.detach() for level in found.maps)
        penalty = found.penalty if self.penalised else found.penalty.detach()
        return replace(found, maps=maps, penalty=penalty)


def _has_idle(trained: _Trained, picture: Float[Tensor, "b c h w"]) -> bool:
    """Whether some parameter that could be trained has no part in the loss."""
    parameters = [value for value in trained.parameters() if value.requires_grad]
    with evaluating(trained):
        found = trained(picture)
    total = found.logits.sum() + found.penalty.sum()
    return any(grad is None for grad in torch.autograd.grad(total, parameters, allow_unused=True))


def joined(launch: Launch | None = None) -> AbstractContextManager[Processes]:
    """Meet the other processes that the launcher started; alone, there is nothing to do.

    Leaving it with an error ends the training in all processes: whoever is first goes on with its
    error, the others with ``PeerFailed``.

    Raises
    ------
    UsageError
        As ``launched``.
    PeerLost
        A process died or did not answer for ``PATIENCE``.
    """
    found = launch or launched()
    return nullcontext(ALONE) if found.alone else _Joined(found)


@final
class _Joined:
    """The process group of one training, and who was the first to fail in it."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def __enter__(self) -> Processes:
        store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
        # The launcher's store outlives a process group, and the next one must not find its traces.
        times = store.add(f"dualwitness/{rank}", 1)
        self._store = PrefixStore(f"dualwitness/{times}", store)
        cuda = torch.cuda.is_available() and distributed.is_nccl_available()
        if cuda and self._launch.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(self._launch.local_rank)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=self._store,
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
        return Processes(self._launch)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        follows = error is not None and self._follows(error)
        group = distributed.group.WORLD
        if error is not None and group is not None:
            group.abort()  # the others may wait for this process: their connections break
        distributed.destroy_process_group()
        if follows:
            raise PeerFailed(*FAILED) from None
        if error is not None and _is_loss_of_a_peer(error):
            raise PeerLost(*LOST) from error

    def _follows(self, error: BaseException) -> bool:
        """Whether another process failed before; asked before the others can notice this one."""
        if isinstance(error, PeerFailed):
            return True
        try:
            return self._store.add("failed", 1) > 1
        except distributed.DistError:  # whoever kept the store is gone
            return True


def _is_loss_of_a_peer(error: BaseException) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


_REFUSED = ()


def _send(content: tuple[Any, ...]) -> None:
    distributed.broadcast_object_list([content], src=0, device=torch.device("cpu"))


def _received() -> Any:
    content: list[Any] = [None]
    distributed.broadcast_object_list(content, src=0, device=torch.device("cpu"))
    if content[0] == _REFUSED:
        raise PeerFailed(*FAILED)
    return content[0][0]
