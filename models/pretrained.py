"""Weights that others have trained, under the names of their libraries, put into our networks.

Files hold a state dict: safetensors, or what ``torch.save`` wrote (read with ``weights_only``, so
that no code in it runs). ResNet and DenseNet names are those of torchvision, transformer names
those of timm; the names of our own files are known too. Nothing is downloaded.
"""

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.errors import NetworkError
from models.networks import Classifier
from models.vit import resampled_positions

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state dict
SHOWN = 6  # names in an error message
POSITIONS = "trunk.patches.positions"
FIRST_CONVOLUTION: Mapping[str, str] = MappingProxyType(
    {
        "resnet": "trunk.stem.conv1.weight",
        "densenet": "trunk.stem.conv0.weight",
        "vit": "trunk.patches.projection.weight",
    }
)
NAMES: Mapping[str, Rules] = MappingProxyType(
    {
        "resnet": (
            (r"^(conv1|bn1)\.", r"trunk.stem.\1."),
            (r"^layer(\d)\.", r"trunk.block\1."),
            (r"^fc\.", "head."),
        ),
        "densenet": (
            (r"^features\.(conv0|norm0)\.", r"trunk.stem.\1."),
            (
                r"^features\.denseblock(\d)\.(denselayer\d+)\.(norm|conv)\.?([12])\.",
                r"trunk.block\1.denseblock\1.\2.layers.\3\4.",
            ),
            (
                r"^features\.transition(\d)\.",
                lambda found: f"trunk.block{int(found[1]) + 1}.transition{found[1]}.",
            ),
            (r"^features\.norm5\.", "trunk.{last}.norm5."),
            (r"^classifier\.", "head."),
        ),
        "vit": (
            (r"^cls_token$", "trunk.patches.class_token"),
            (r"^pos_embed$", POSITIONS),
            (r"^patch_embed\.proj\.", "trunk.patches.projection."),
            (r"^blocks\.(\d+)\.", lambda found: f"trunk.block{int(found[1]) + 1}."),
            (r"\.attn\.proj\.", ".attn.out_proj."),
            (r"\.mlp\.fc([12])\.", r".mlp.linear\1."),
            (r"^norm\.", "trunk.norm."),
        ),
    }
)
"""Family of a trunk -> how a name in a file becomes one of ours, rule after rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedReport:
    """What became of a file's weights.

    Attributes
    ----------
    matched
        Our names of weights that were taken over as they are.
    adapted
        Our names of weights that were fitted: the first convolution to other channels, position
        embeddings to another grid.
    fresh
        Our names of weights that the file does not hold and that keep what they had, attention
        gates included.
    unused
        The file's names of weights that fit nothing of ours.
    """

    matched: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def load_pretrained(
    model: Classifier, path: Path, *, allow: Sequence[str] = ()
) -> PretrainedReport:
    """Put a file's weights into a classifier; after an error it is as before.

    Parameters
    ----------
    allow
        Names that may stay unmatched, the file's or ours, each with all that lies below it:
        ``("head",)`` for another number of classes. Attention gates and counters of batches
        need not be allowed.

    Raises
    ------
    NetworkError
        If the file is no state dict, or a weight of the file or the network that is not allowed
        finds no counterpart of its shape.
    """
    return fit_pretrained(model, read_weights(path), allow=allow)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict of tensors from a safetensors file or a file of ``torch.save``.

    Raises
    ------
    NetworkError
        If it cannot be read, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise NetworkError(
            "WEIGHTS_UNREADABLE",
            f"the file of weights cannot be read ({type(error).__name__}); give a .safetensors "
            "file, or a state dict of tensors written by torch.save",
        ) from None
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(value, Tensor) for value in found.values())
    ):
        raise NetworkError(
            "NO_STATE_DICT",
            "the file of weights holds no state dict, a mapping from names to tensors; save "
            "model.state_dict() instead",
        )
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def fit_pretrained(
    model: Classifier, weights: Mapping[str, Tensor], *, allow: Sequence[str] = ()
) -> PretrainedReport:
    """Put a state dict's weights into a classifier, as ``load_pretrained``.

    Raises
    ------
    NetworkError
        If a weight that is not allowed finds no counterpart of its shape, or one is not finite.
    """
    own = model.state_dict()
    ours = {name: _our_name(name, model) for name in weights}
    fitted = {
        ours[name]: value
        for name, weight in weights.items()
        if ours[name] in own
        and (value := _fitted(ours[name], weight, own[ours[name]], model)) is not None
    }
    unused = [name for name in weights if ours[name] not in fitted]
    fresh = [name for name in own if name not in fitted]
    allowed = (*allow, "attention")
    _refuse_unmatched(
        [name for name in unused if not _within(allowed, name, ours[name])],
        [name for name in fresh if not _within(allowed, name, *_sources(name, ours))],
    )
    _refuse_infinite(fitted)
    model.load_state_dict(fitted, strict=False)
    model.attention.renew(model.trunk)
    model.load_state_dict(fitted, strict=False)  # what a file holds, it need not take over anew
    changed = {ours[name] for name in weights if weights[name].shape != _shape(own, ours[name])}
    return PretrainedReport(
        matched=tuple(name for name in fitted if name not in changed),
        adapted=tuple(name for name in fitted if name in changed),
        fresh=tuple(fresh),
        unused=tuple(unused),
    )


def fit_channels(
    weight: Float[Tensor, "d c h w"], channels: int
) -> Float[Tensor, "d {channels} h w"]:
    """First convolution for another number of channels: their mean, shared out.

    The sum over the channels stays, so that a picture with the same values in all channels gives
    the same features as before.
    """
    before = weight.shape[1]
    return weight.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (before / channels)


def _our_name(name: str, model: Classifier) -> str:
    if name.split(".")[0] in ("trunk", "attention"):
        return name
    for pattern, ours in NAMES.get(model.trunk.family, ()):
        name = re.sub(pattern, ours, name)
    if "{last}" not in name:
        return name
    return name.replace("{last}", [stage for stage in model.trunk.names if "block" in stage][-1])


def _fitted(name: str, weight: Tensor, own: Tensor, model: Classifier) -> Tensor | None:
    """Return the weight in our shape and type, or None where it cannot be had."""
    if weight.shape == own.shape:
        return weight.to(own.dtype)
    if name == FIRST_CONVOLUTION.get(model.trunk.family) and weight.ndim == own.ndim:
        fitted = fit_channels(weight.float(), own.shape[1])
        return fitted.to(own.dtype) if fitted.shape == own.shape else None
    if name == POSITIONS and weight.ndim == 3 and _is_square(weight.shape[1] - 1):
        side = round((own.shape[1] - 1) ** 0.5)
        fitted = resampled_positions(weight.float(), (side, side))
        return fitted.to(own.dtype) if fitted.shape == own.shape else None
    return None


def _is_square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count


def _shape(own: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return own[name].shape if name in own else None


def _sources(name: str, ours: Mapping[str, str]) -> list[str]:
    return [theirs for theirs, our in ours.items() if our == name]


def _within(allowed: Sequence[str], *names: str) -> bool:
    """Whether one of the names, or a part that holds it, is allowed; counters always are."""
    return any(
        name == part or name.startswith(f"{part}.") or name.endswith("num_batches_tracked")
        for name in names
        for part in allowed
    )


def _refuse_unmatched(unused: Sequence[str], fresh: Sequence[str]) -> None:
    if not unused and not fresh:
        return
    raise NetworkError(
        "WEIGHTS_UNMATCHED",
        f"{len(unused)} weights of the file fit nothing in the network{_listed(unused)} and "
        f"{len(fresh)} of the network are not in the file in their shape{_listed(fresh)}; use a "
        "file of this network, or allow these by name ('head' for another number of classes)",
    )


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{more})"


def _refuse_infinite(weights: Mapping[str, Tensor]) -> None:
    wrong = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    if wrong:
        raise NetworkError(
            "WEIGHTS_NOT_FINITE",
            f"{len(wrong)} weights of the file hold NaN or infinity{_listed(wrong)}; the training "
            "that wrote it went astray, use another file",
        )
