"""Settings that belong together, by name: the paper's recipes, and one for processors.

Where a recipe is the paper's, its settings are those of the paper and of its released code, but for
what is listed in ``DIFFERENCES``, with the reason; a run's model card repeats that list.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, section 4.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

PAPER_BASELINE: Mapping[str, Any] = MappingProxyType(
    {
        "variant": "baseline",
        "epochs": 20,
        "batch_size": 64,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "balance": "none",
        "gradient_clip": 0.0,
        "statistics_pictures": 0,
        "augment": {
            "flip_left_right": 0.5,
            "flip_up_down": 0.5,
            "rotate_deg": 180.0,
            "translate": 0.2,
            "zoom": 1.2,
            "scale": 0.25,
            "shear_deg": 1.5,
            "intensity": 0.0,
        },
    }
)
"""Adam at a constant rate; shapes from 0.9 to 1.5 times their size, in any direction."""

PAPER: Mapping[str, Any] = MappingProxyType(
    {**PAPER_BASELINE, "variant": "dual", "freeze_trunk": True}
)
"""Fine-tuning of both gates, the witness and the head on the frozen trunk of a baseline; the weight
of the penalty is the variant's own, 10 for ``dual``."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper-fdg-pet-baseline": {**PAPER_BASELINE, "network": "resnet50", "image_size": 512},
        "paper-fdg-pet": {
            **PAPER,
            "network": "resnet50",
            "image_size": 512,
            "network_options": {"embedding": [1024, 2048], "gate_bias": False, "pool_scale": 1.0},
        },
        "paper-brats18-baseline": {
            **PAPER_BASELINE,
            "network": "unet-encoder",
            "image_size": 256,
        },
        "paper-brats18": {
            **PAPER,
            "network": "unet-encoder",
            "image_size": 256,
            "network_options": {"embedding": [512], "gate_bias": True, "pool_scale": 1.0},
        },
        "small": {
            "network": "unet-encoder-narrow",
            "image_size": 64,
            "batch_size": 32,
            "learning_rate": 3e-3,
            "epochs": 6,
        },
    }
)
"""Name of a preset -> the settings it stands for; what is given beside it wins."""

DIFFERENCES: Mapping[str, str] = MappingProxyType(
    {
        "choice of the epoch": "the lowest loss on validation patients, never on the test fold "
        "that the paper reports: a maximum over epochs of the test score is no estimate of it",
        "witness term": "normalised for each sample in log space; the released code normalises "
        "over the whole batch, so that a sample pays for its neighbours (variant=dual-published)",
        "gates": "multiply features by the map times its number of cells; without it features "
        "shrink by three to four orders of magnitude, and frozen batch normalisation would let "
        "almost nothing through (network_options.rescale=false)",
        "frozen trunk": "weights and batch-normalisation statistics; the released code holds the "
        "weights and lets the statistics move",
        "normalisation": "by the training pictures, brains by z-scores of their own; the released "
        "code uses fixed figures on raw intensities",
        "resampling": "the same in training and evaluation; the released code trains on bilinear "
        "and evaluates on nearest pixels",
        "shear": "up to 1.5 degrees either way; the released code draws 0.7 to 1.5 degrees one way",
        "border": "what moves in from outside is the edge pixel; the released code fills zeros, "
        "which after normalisation are no background",
        "order": "drawn anew for each epoch; the released code keeps one order",
        "baseline": "trained by the same recipe as its fine-tuning; the paper does not give one",
    }
)
"""What differs from the paper -> how and why; the same for each of its recipes."""


def expanded(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the settings that are given over those of a preset, group by group.

    Raises
    ------
    ValueError
        No preset has this name.
    """
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"no preset '{name}'; {hint}known: {', '.join(PRESETS)}")
    return _laid_over(PRESETS[name], given)


def differences(name: str) -> Sequence[str]:
    """Tell how a preset differs from the paper; nothing where it is not the paper's."""
    if not name.startswith("paper-"):
        return ()
    return tuple(f"{what}: {how}" for what, how in DIFFERENCES.items())


def _laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in changes.items():
        inner: Any = found.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        found[key] = _laid_over(inner, value) if both else value
    return found
