"""The contracting half of a U-Net as a trunk.

References
----------
Ronneberger, Fischer, Brox, "U-Net: convolutional networks for biomedical image segmentation",
MICCAI 2015.
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, section 4.
"""

from collections.abc import Sequence

from monai.networks.nets.basic_unet import Down, TwoConv
from torch import nn

from models.trunk import Trunk

WIDTHS = (32, 64, 128, 256, 512)
NARROW_WIDTHS = (8, 16, 32, 64, 128)  # for processors: a sixteenth of the arithmetic
NAMES = ("encoder1", "encoder2", "encoder3", "encoder4", "bottleneck")


def unet_trunk(in_channels: int, *, widths: Sequence[int] = WIDTHS) -> Trunk:
    """Five pairs of convolutions with 2 x 2 maximum pools between them, from MONAI's blocks.

    Each convolution is 3 x 3 without bias, with batch normalisation and a rectifier. The pair of
    gates sits before the last two pools, at strides 4 and 8; a chain also gates the bottleneck, and
    a pyramid every stage but that. A pool of an odd side keeps its last row and column.
    """
    act, norm = ("relu", {"inplace": True}), "batch"
    stages: dict[str, nn.Module] = {NAMES[0]: TwoConv(2, in_channels, widths[0], act, norm, False)}
    for name, before, after in zip(NAMES[1:], widths, widths[1:], strict=False):
        down = Down(2, before, after, act, norm, bias=False)
        down.max_pooling = nn.MaxPool2d(kernel_size=2, ceil_mode=True)
        stages[name] = down
    return Trunk(
        stages,
        channels=dict(zip(NAMES, widths, strict=True)),
        strides={name: 2**i for i, name in enumerate(NAMES)},
        gated=NAMES[2:],
        pair=NAMES[2:4],
        pyramid=NAMES[:4],
    )
