"""A run on disk to the network that it describes."""

from pathlib import Path

import torch

from models.networks import Classifier
from pipelines import run as run_files
from pipelines.assemble import network_of
from pipelines.config import RunConfig


def load_network(run: Path, config: RunConfig) -> Classifier:
    """Build a run's network with its best weights, in evaluation mode, on the processor.

    Torch's random state is left as found.

    Raises
    ------
    RunError
        The run is incomplete or was altered.
    """
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced at once
        network = network_of(config)
    run_files.load_weights(run, network)
    return network.eval()
