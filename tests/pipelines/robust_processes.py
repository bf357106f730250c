"""Two processes that train on robust objectives together on a CPU: ``main(OUT)``.

What each of them found is left in OUT for the tests to look at.
"""

import os
import sys
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from monai.engines.trainer import SupervisedTrainer

from models.networks import build
from pipelines import handlers
from pipelines.assemble import Forward, to_device
from pipelines.config import Normalisation, RobustConfig, TrainConfig, ValidRange
from pipelines.distributed import Processes, joined
from pipelines.feed import Order
from pipelines.robust import RobustTraining, domain_of, robust_of
from pipelines.step import Step
from tests.pipelines.two_processes import (
    CPU,
    PICTURES,
    STEPS,
    _copied,
    _first_weights,
    _launch,
    share,
)

CASES = MappingProxyType(
    {
        "mixed": TrainConfig(
            objective="pgd-l2", robust=RobustConfig(steps=2, weight=0.5, radius=0.3)
        ),
        "attacked-in-parts": TrainConfig(
            objective="l2", network="vit-narrow", variant="baseline", accumulate=2
        ),
        "penalty": TrainConfig(objective="l2-penalty", network="resnet10-narrow"),
    }
)


def trained(processes: Processes, settings: TrainConfig) -> dict[str, Any]:
    """Weights, buffers and mean losses after some steps."""
    if settings.network == "resnet18":
        settings = settings.model_copy(update={"network": "unet-encoder-narrow"})
    network = build(
        settings.network, variant=settings.variant, in_channels=1, classes=3, image_size=32
    ).double()
    _first_weights(network)
    processes.synchronised(network, CPU)
    losses = handlers.Losses(
        alpha=1.0, class_weights=None, label_smoothing=0.0, processes=processes
    )
    order = Order(
        labels=np.zeros(PICTURES, dtype=np.int64), batch_size=PICTURES, seed=4, balanced=False,
        launch=processes.launch,
    )  # fmt: skip
    robust = RobustTraining(
        robust_of(settings, (32, 32)),
        network=network,
        domain=domain_of(
            Normalisation(mean=(10.0,), sd=(3.0,)), ValidRange(low=(0.0,), high=(20.0,))
        ),
        forward=Forward(CPU, "float32"),
        losses=losses,
        order=order,
    )
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=share(processes),
        network=processes.joint(network, called=network, device=CPU, penalised=True),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=losses,
        epoch_length=STEPS,
        prepare_batch=to_device,
        iteration_update=Step(
            parts=settings.accumulate,
            pictures=PICTURES / processes.world,
            device=CPU,
            precision="float32",
            robust=robust,
        ),
        inferer=Forward(CPU, "float32"),
        decollate=False,
    )
    trainer.run()
    return {"losses": losses.means(), "state": _copied(network)}


def _work(out: Path) -> None:
    with joined() as processes:
        found = {case: trained(processes, settings) for case, settings in CASES.items()}
        torch.save(found, out / f"robust-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    _launch(partial(_work, Path(sys.argv[1])))
