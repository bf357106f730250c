"""Networks by name: a trunk from MONAI, attention around it, and a linear head.

Axes: b batch, c channel, h row, w column, k class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, final, get_args

from jaxtyping import Float
from torch import Tensor, nn

from models import densenet, resnet, unet
from models.attention import ATTENTIONS, Variant
from models.convex import Mean
from models.densenet import densenet_trunk
from models.errors import NetworkError, ShapeError, unknown
from models.gates import GateOptions
from models.gating import Plan
from models.records import Prediction
from models.resnet import resnet_trunk
from models.trunk import Trunk
from models.unet import unet_trunk
from models.vit import vit_trunk


@final
class Classifier(nn.Module):
    """Images in, class logits and attention maps out.

    Attributes
    ----------
    map_names
        What each of the prediction's maps is called, finest first.
    default_alpha
        Weight of the consistency penalty that suits the variant.
    """

    def __init__(
        self,
        trunk: Trunk,
        variant: Variant,
        plan: Plan,
        *,
        in_channels: int,
        classes: int,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.image_size = in_channels, classes, image_size
        self.trunk = trunk
        self.attention = variant.attention(trunk, plan)
        self.head = nn.Linear(self.attention.features, classes)
        self.map_names, self.default_alpha = self.attention.map_names, variant.alpha

    def forward(self, images: Float[Tensor, "b c h w"]) -> Prediction:
        """Classify a batch; logits, maps and penalty are float32 at least, whatever the autocast.

        Raises
        ------
        ShapeError
            If the images have other channels or another size than the network was built for.
        """
        expected = (self.in_channels, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ShapeError(
                "IMAGES_DO_NOT_FIT",
                f"images are {_sizes(images.shape[1:])} (channels, rows, columns), the network was "
                f"built for {_sizes(expected)}; resize the images or build it for their size",
            )
        attended = self.attention(self.trunk, images)
        logits = self.head(attended.pooled)
        logits = logits.float() if logits.element_size() < 4 else logits
        return Prediction(logits=logits, maps=attended.maps, penalty=attended.penalty)


def build(
    network: str,
    *,
    variant: str,
    in_channels: int,
    classes: int,
    image_size: int | tuple[int, int],
    **options: Any,
) -> Classifier:
    """Build a classifier by the names of its network and attention variant.

    Weights are drawn from torch's global generator: seed it (``torch.manual_seed``) before.

    Parameters
    ----------
    network, variant
        Keys of ``NETWORKS`` and ``ATTENTIONS``.
    image_size
        Rows and columns of the images, or one number for square ones.
    options
        Fields of ``models.gates.GateOptions``.

    Raises
    ------
    NetworkError
        If a name or option is unknown, a count is not positive, the network has no stages that
        the variant could gate, it cannot take images of this size, or their attention maps would
        not nest.
    """
    make_trunk = _named("network", network, NETWORKS)
    chosen = _named("variant", variant, ATTENTIONS)
    gate_options = _gate_options({**chosen.options, **options})
    _check_at_least(1, in_channels=in_channels)
    _check_at_least(2, classes=classes)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    trunk = make_trunk(in_channels)
    levels = chosen.stages(trunk)
    if chosen.levels != "none" and not levels:
        raise NetworkError(
            "NOTHING_TO_GATE",
            f"'{network}' has no stages that variant '{variant}' could gate: it attends by itself; "
            "use variant 'baseline', which reports its own map",
        )
    _check_size(trunk, size)
    _check_chain(gate_options, levels)
    plan = Plan(
        levels=levels,
        map_names=chosen.map_names(trunk),
        grids=_nested_grids(trunk, levels, size),
        options=gate_options,
        penalty=chosen.penalty,
    )
    return Classifier(
        trunk, chosen, plan, in_channels=in_channels, classes=classes, image_size=size
    )


CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mean": get_args(Mean), "witness": ("position", "image")}
)


NETWORKS: Mapping[str, Callable[[int], Trunk]] = MappingProxyType(
    {
        "resnet18": partial(resnet_trunk, block="basic", layers=(2, 2, 2, 2)),
        "resnet50": partial(resnet_trunk, block="bottleneck", layers=(3, 4, 6, 3)),
        "resnet10-narrow": partial(
            resnet_trunk, block="basic", layers=(1, 1, 1, 1), widths=resnet.NARROW_WIDTHS
        ),
        "resnet18-narrow": partial(
            resnet_trunk, block="basic", layers=(2, 2, 2, 2), widths=resnet.NARROW_WIDTHS
        ),
        "unet-encoder": unet_trunk,
        "unet-encoder-narrow": partial(unet_trunk, widths=unet.NARROW_WIDTHS),
        "densenet121": densenet_trunk,
        "densenet121-stride16": partial(densenet_trunk, blocks=3),
        "densenet121-stride8": partial(densenet_trunk, blocks=2),
        "densenet121-upsampled": partial(densenet_trunk, upsampled=True),
        "densenet-narrow": partial(densenet_trunk, layers=densenet.NARROW_LAYERS, growth=8),
        "densenet-narrow-stride8": partial(
            densenet_trunk, layers=densenet.NARROW_LAYERS, growth=8, blocks=2
        ),
        "vit-b16": vit_trunk,
        "vit-narrow": partial(vit_trunk, width=64, depth=4, heads=4),
    }
)
"""Name of a network -> its trunk for a number of input channels."""


def _named(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
    if name not in registry:
        raise NetworkError(f"UNKNOWN_{kind.upper()}", unknown(kind, name, registry))
    return registry[name]


def _gate_options(options: Mapping[str, Any]) -> GateOptions:
    known = [field.name for field in fields(GateOptions)]
    for name in options:
        if name not in known:
            raise NetworkError("UNKNOWN_OPTION", unknown("option", name, known))
        if name in CHOICES and options[name] not in CHOICES[name]:
            message = unknown(name, str(options[name]), CHOICES[name])
            raise NetworkError(f"BAD_{name.upper()}", message)
    chosen = GateOptions(**options)
    _check_at_least(1, **{f"embedding[{i}]": width for i, width in enumerate(chosen.embedding)})
    _check_at_least(1, cascade=chosen.cascade)
    if not 0 <= chosen.weight <= 1:
        raise NetworkError(
            "BAD_WEIGHT",
            f"weight is {chosen.weight}; the coarse level's share lies between 0 and 1",
        )
    if not 0 < chosen.pool_scale <= 1:
        raise NetworkError(
            "BAD_POOL_SCALE", f"pool_scale is {chosen.pool_scale}; it lies above 0 and up to 1"
        )
    return chosen


def _check_chain(options: GateOptions, levels: Sequence[str]) -> None:
    if len(levels) > 2 and options.weight in (0, 1):
        raise NetworkError(
            "BAD_WEIGHT",
            f"weight is {options.weight}; in a chain of {len(levels)} levels it lies between 0 and "
            "1 and is neither",
        )


def _check_at_least(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise NetworkError("BAD_COUNT", f"{name} is {count}; it must be {least} or more")


def _check_size(trunk: Trunk, size: tuple[int, ...]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise NetworkError("BAD_IMAGE_SIZE", f"image size is {size}; give positive rows, columns")
    if any(side % trunk.multiple for side in size):
        raise NetworkError(
            "NO_WHOLE_PATCHES",
            f"images of {_sizes(size)} pixels do not divide into patches of {trunk.multiple}; "
            f"{_advice(size, trunk.multiple)}",
        )


def _nested_grids(
    trunk: Trunk, levels: Sequence[str], size: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    grids = tuple(trunk.grid(level, (size[0], size[1])) for level in levels)
    for (name, fine), (coarser, coarse) in pairwise(zip(levels, grids, strict=True)):
        if any(f % c for f, c in zip(fine, coarse, strict=True)):
            raise NetworkError(
                "MAPS_DO_NOT_NEST",
                f"images of {_sizes(size)} pixels give {_sizes(fine)} cells at {name} and "
                f"{_sizes(coarse)} at {coarser}, which do not nest; "
                f"{_advice(size, max(trunk.strides[level] for level in levels))}",
            )
    return grids


def _advice(size: Sequence[int], multiple: int) -> str:
    """Name the nearest sizes below and above that are multiples."""
    below = [max(multiple, side // multiple * multiple) for side in size]
    above = [-(-side // multiple) * multiple for side in size]
    nearest = " or ".join(dict.fromkeys((_sizes(below), _sizes(above))))
    return f"use sides that are multiples of {multiple}, the nearest being {nearest}"


def _sizes(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)
