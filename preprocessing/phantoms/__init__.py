"""Synthetic patients, written in the scanners' own file formats with every true value known."""

from collections.abc import Callable, Mapping

from preprocessing.phantoms.brats18 import write_brats18
from preprocessing.phantoms.chestxray14 import write_chestxray14
from preprocessing.phantoms.fdg_pet import write_fdg_pet

PHANTOMS: Mapping[str, Callable[..., None]] = {
    "fdg-pet": write_fdg_pet,
    "brats18": write_brats18,
    "chestxray14": write_chestxray14,
}
"""Name on the command line to writer: ``writer(out, subjects=, seed=, progress=)``."""
