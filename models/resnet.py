"""ResNet trunks.

References
----------
He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal

from monai.networks.nets.resnet import ResNet
from torch import nn

from models.trunk import Trunk

WIDTHS = (64, 128, 256, 512)
NARROW_WIDTHS = (16, 32, 64, 128)  # for processors: a sixteenth of the arithmetic
STRIDES = MappingProxyType({"stem": 4, "block1": 4, "block2": 8, "block3": 16, "block4": 32})


def resnet_trunk(
    in_channels: int,
    *,
    block: Literal["basic", "bottleneck"],
    layers: Sequence[int],
    widths: Sequence[int] = WIDTHS,
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
        strides=STRIDES,
        gated=("block2", "block3", "block4"),
        pyramid=tuple(blocks),
        family="resnet",
    )
