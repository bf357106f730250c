"""DenseNet trunks, whole or ending at a finer grid.

References
----------
Huang, Liu, van der Maaten, Weinberger, "Densely connected convolutional networks", CVPR 2017.
Khakzar, Albarqouni, Navab, "Learning interpretable features via adversarially robust
optimization", MICCAI 2019: chest radiographs, where a finer last grid localises better.
"""

from collections.abc import Sequence

from monai.networks.nets.densenet import DenseNet
from torch import nn

from models.trunk import Trunk

LAYERS = (6, 12, 24, 16)
NARROW_LAYERS = (2, 2, 2, 2)  # for processors
PYRAMID = (4, 8, 16, 32)


def densenet_trunk(
    in_channels: int,
    *,
    layers: Sequence[int] = LAYERS,
    growth: int = 32,
    blocks: int = 4,
    upsampled: bool = False,
) -> Trunk:
    """MONAI's two-dimensional DenseNet, normalised and rectified at its end.

    Parameters
    ----------
    layers
        Layers of each of the four dense blocks.
    growth
        Channels that each layer adds; the first block starts with twice as many.
    blocks
        Dense blocks that are kept: 4 end at a stride of 32, 3 at 16, 2 at 8.
    upsampled
        Whether two transposed convolutions follow, back to a quarter of the stride.
    """
    net = DenseNet(
        2,
        in_channels,
        1,
        init_features=2 * growth,
        growth_rate=growth,
        block_config=layers[:blocks],
    )
    parts = dict(net.features.named_children())
    stem = _sequence({name: parts[name] for name in ("conv0", "norm0", "relu0", "pool0")})
    stages, channels = {"stem": stem}, {"stem": 2 * growth}
    width = 2 * growth
    for i in range(1, blocks + 1):
        between = {f"transition{i - 1}": parts[f"transition{i - 1}"]} if i > 1 else {}
        stages[f"block{i}"] = _sequence({**between, f"denseblock{i}": parts[f"denseblock{i}"]})
        width = (width // 2 if i > 1 else width) + layers[i - 1] * growth
        channels[f"block{i}"] = width
    for module in net.features.modules():
        if isinstance(module, nn.AvgPool2d):
            module.ceil_mode = True  # an odd side keeps its last row and column
    stages[f"block{blocks}"].add_module("norm5", parts["norm5"])
    stages[f"block{blocks}"].add_module("relu", nn.ReLU(inplace=True))
    strides = {"stem": 4, **{f"block{i + 1}": PYRAMID[i] for i in range(blocks)}}
    gated = tuple(f"block{i}" for i in range(max(1, blocks - 2), blocks + 1))
    if upsampled:
        stages["upsampled"] = _upsampling(width)
        channels["upsampled"], strides["upsampled"] = width, PYRAMID[blocks - 1] // 4
    return Trunk(
        stages,
        channels=channels,
        strides=strides,
        gated=gated,
        pyramid=tuple(f"block{i}" for i in range(1, blocks + 1)),
        family="densenet",
    )


def _upsampling(width: int) -> nn.Sequential:
    """Two transposed convolutions that double the grid each, normalised and rectified."""
    layers: dict[str, nn.Module] = {}
    for i in (1, 2):
        layers[f"conv{i}"] = nn.ConvTranspose2d(
            width, width, kernel_size=3, stride=2, padding=1, output_padding=1
        )
        layers[f"norm{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
    return _sequence(layers)


def _sequence(parts: dict[str, nn.Module]) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, part in parts.items():
        sequence.add_module(name, part)
    return sequence
