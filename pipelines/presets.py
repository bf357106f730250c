"""Settings that belong together, by name: the papers' recipes, and small ones for processors.

Where a recipe is a paper's, its settings are those of the paper and of its authors' code, but for
what is listed in ``DIFFERENCES``, with the reason; a run's model card repeats that list.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, section 4.
Khakzar, Albarqouni, Navab, "Learning interpretable features via adversarially robust optimization",
MICCAI 2019; settings of the group's later code for the same data.
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

STILL: Mapping[str, Any] = MappingProxyType(
    {
        "flip_left_right": 0.0,
        "rotate_deg": 0.0,
        "translate": 0.0,
        "scale": 0.0,
        "intensity": 0.0,
    }
)
"""Pictures as they are."""

CHEST: Mapping[str, Any] = MappingProxyType(
    {
        "network": "densenet121",
        "variant": "baseline",
        "image_size": 224,
        "epochs": 100,
        "patience": 10,
        "batch_size": 32,
        "optimizer": "sgd",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "balance": "none",
        "gradient_clip": 0.0,
        "statistics_pictures": 0,
        "augment": STILL,
    }
)
"""Gradient descent at a constant rate on pictures as they are."""

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
        "paper-chestxray14": CHEST,
        "paper-chestxray14-w-cel": {**CHEST, "balance": "w-cel"},
        "small": {
            "network": "unet-encoder-narrow",
            "image_size": 64,
            "batch_size": 32,
            "learning_rate": 3e-3,
            "epochs": 6,
        },
        "small-chestxray14": {
            "network": "densenet-narrow-stride8",
            "variant": "baseline",
            "image_size": 96,
            "batch_size": 32,
            "learning_rate": 3e-3,
            "epochs": 30,
            "balance": "w-cel",
            "augment": {"flip_left_right": 0.0},
        },
    }
)
"""Name of a preset -> the settings it stands for; what is given beside it wins."""

RON_DIFFERENCES: Mapping[str, str] = MappingProxyType(
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
"""What differs from Ron et al. -> how and why; the same for each of their recipes."""

CHEST_DIFFERENCES: Mapping[str, str] = MappingProxyType(
    {
        "source": "the paper's own settings are not public; these are of its group's later code "
        "for the same data, and so is the choice between weighted losses (balance)",
        "first weights": "at random unless a file of ImageNet weights is named (--pretrained), as "
        "the group's are; the first convolution is then summed over colours, for one grey channel",
        "normalisation": "by the training pictures; the group's code takes ImageNet's means and "
        "standard deviations on three equal channels",
        "momentum": "Nesterov's, of 0.9; the group's code has the plain one of 0.9",
        "weight decay": "of convolutions and the head only; the group's code decays scales and "
        "biases of batch normalisation, too",
        "end": "after 10 epochs without a lower validation loss, 100 at most; the group's code "
        "trains up to 100 and keeps the best",
        "validation loss": "weighed by the counts of the training split, so that it does not "
        "depend on which pictures share a batch; the group's code counts in each batch",
        "weights of a batch": "1 where it holds one kind of label only, for which the published "
        "ratios are not defined",
        "W-CEL": "a mean over labels; the paper of the data set writes a sum, which differs by a "
        "factor that belongs into the learning rate",
    }
)
"""What differs from the code of Khakzar et al.'s group -> how and why."""

DIFFERENCES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "paper-fdg-pet-baseline": RON_DIFFERENCES,
        "paper-fdg-pet": RON_DIFFERENCES,
        "paper-brats18-baseline": RON_DIFFERENCES,
        "paper-brats18": RON_DIFFERENCES,
        "paper-chestxray14": CHEST_DIFFERENCES,
        "paper-chestxray14-w-cel": CHEST_DIFFERENCES,
    }
)
"""Name of a paper's recipe -> what differs from the paper."""


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
    """Tell how a preset differs from its paper; nothing where it is no paper's."""
    return tuple(f"{what}: {how}" for what, how in DIFFERENCES.get(name, {}).items())


def _laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in changes.items():
        inner: Any = found.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        found[key] = _laid_over(inner, value) if both else value
    return found
