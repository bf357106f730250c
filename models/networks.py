"""Networks by name: a trunk from MONAI, attention around it, and a linear head.

Axes: b batch, c channel, h row, w column, k class.

References
----------
He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, final

from jaxtyping import Float
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from models.attention import ATTENTIONS, Plan, Variant
from models.errors import NetworkError, ShapeError, unknown
from models.gates import GateOptions
from models.records import Prediction
from models.trunk import Trunk

RESNET_WIDTHS = (64, 128, 256, 512)
NARROW_WIDTHS = (16, 32, 64, 128)  # for processors: a sixteenth of the arithmetic
RESNET_STRIDES = MappingProxyType({"stem": 4, "block1": 4, "block2": 8, "block3": 16, "block4": 32})


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
        If a name or option is unknown, a count is not positive, or the attention maps of images
        of this size would not nest.
    """
    make_trunk = _named("network", network, NETWORKS)
    chosen = _named("variant", variant, ATTENTIONS)
    gate_options = _gate_options(options)
    _check_at_least(1, in_channels=in_channels)
    _check_at_least(2, classes=classes)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    trunk = make_trunk(in_channels)
    levels = chosen.stages(trunk)
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


def resnet_trunk(
    in_channels: int,
    *,
    block: Literal["basic", "bottleneck"],
    layers: Sequence[int],
    widths: Sequence[int] = RESNET_WIDTHS,
) -> Trunk:
    """MONAI's two-dimensional ResNet in the geometry of the paper: total stride 32.

    The projection shortcut is used throughout: the padded one is cut off from the gradient.
    """
    net = ResNet(
        block,
        layers=list(layers),
        block_inplanes=list(widths),
        spatial_dims=2,
        n_input_channels=in_channels,
        conv1_t_size=7,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    stem = nn.Sequential()
    for name in ("conv1", "bn1", "act", "maxpool"):
        stem.add_module(name, net.get_submodule(name))
    blocks = {f"block{i}": net.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)}
    expansion = 4 if block == "bottleneck" else 1
    channels = {f"block{i}": expansion * width for i, width in enumerate(widths, start=1)}
    return Trunk(
        {"stem": stem, **blocks},
        channels={"stem": widths[0], **channels},
        strides=RESNET_STRIDES,
        gated=("block2", "block3", "block4"),
    )


NETWORKS: Mapping[str, Callable[[int], Trunk]] = MappingProxyType(
    {
        "resnet18": partial(resnet_trunk, block="basic", layers=(2, 2, 2, 2)),
        "resnet50": partial(resnet_trunk, block="bottleneck", layers=(3, 4, 6, 3)),
        "resnet10-narrow": partial(
            resnet_trunk, block="basic", layers=(1, 1, 1, 1), widths=NARROW_WIDTHS
        ),
        "resnet18-narrow": partial(
            resnet_trunk, block="basic", layers=(2, 2, 2, 2), widths=NARROW_WIDTHS
        ),
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
    chosen = GateOptions(**options)
    _check_at_least(1, **{f"embedding[{i}]": width for i, width in enumerate(chosen.embedding)})
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


def _check_at_least(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise NetworkError("BAD_COUNT", f"{name} is {count}; it must be {least} or more")


def _nested_grids(
    trunk: Trunk, levels: Sequence[str], size: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if len(size) != 2 or min(size) < 1:
        raise NetworkError("BAD_IMAGE_SIZE", f"image size is {size}; give positive rows, columns")
    stride = trunk.strides[trunk.names[-1]]
    grids = tuple(trunk.grid(level, (size[0], size[1])) for level in levels)
    for (name, fine), (coarser, coarse) in pairwise(zip(levels, grids, strict=True)):
        if any(f % c for f, c in zip(fine, coarse, strict=True)):
            raise NetworkError(
                "MAPS_DO_NOT_NEST",
                f"images of {_sizes(size)} pixels give {_sizes(fine)} cells at {name} and "
                f"{_sizes(coarse)} at {coarser}, which do not nest; use sides that are "
                f"multiples of {stride}, the nearest being {_sizes(_nearest(size, stride))}",
            )
    return grids


def _nearest(size: Sequence[int], stride: int) -> list[int]:
    return [max(stride, stride * round(side / stride)) for side in size]


def _sizes(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)
