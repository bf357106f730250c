"""Synthetic patients, written in the scanners' own file formats with every true value known."""

from collections.abc import Callable, Mapping

from preprocessing.phantoms.fdg_pet import write_fdg_pet

PHANTOMS: Mapping[str, Callable[..., None]] = {"fdg-pet": write_fdg_pet}
"""Name on the command line to writer: ``writer(out, subjects=, seed=, progress=)``."""
