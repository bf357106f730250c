"""How the pictures of a split are held, carried to a device and finished there.

Axes: b batch, c channel, p stored row, q stored column, h row, w column.

What travels to an accelerator is whichever is less: pictures as stored, scored over the brain and
resampled on the accelerator, or finished ones. On a CPU pictures are finished as they are read.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from pipelines.feed import Pictures, finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Pictures on their way, and what they are scored by where that is still to be done."""

    pixels: Shaped[Tensor, "b c p q"]
    statistics: Float32[Tensor, "b 2 k"]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Held":
        """Change both tensors alike."""
        return Held(pixels=change(self.pixels), statistics=change(self.statistics))


class Carrier:
    """How the pictures of a split are held and carried to a device.

    Attributes
    ----------
    late
        Whether they are finished on the device.
    bytes_each
        What one picture takes.
    recipe
        Arguments that make an equal one in another process.
    """

    def __init__(self, images: Pictures, device: torch.device) -> None:
        self.recipe = images, device
        self._images, self._size = images, images.size
        ready = images[0] if len(images) else torch.empty((0, *images.size))
        stored = np.array(images.stored(0)[0]) if len(images) else np.empty(0)
        self.late = device.type == "cuda" and stored.nbytes < ready.nbytes
        self._like = torch.from_numpy(stored) if self.late else ready
        self.bytes_each: int = self._like.nbytes

    def __len__(self) -> int:
        return len(self._images)

    def empty(self, count: int, *, device: torch.device, pinned: bool = False) -> Held:
        """Memory for so many pictures."""
        channels = self._like.shape[0]
        shapes = (count, *self._like.shape), (count, 2, channels if self.late else 0)
        kinds = self._like.dtype, torch.float32
        return Held(
            pixels=torch.empty(shapes[0], dtype=kinds[0], device=device, pin_memory=pinned),
            statistics=torch.empty(shapes[1], dtype=kinds[1], device=device, pin_memory=pinned),
        )

    def read(self, batch: Held, place: int, index: int) -> None:
        """Read one picture into a place of a batch on the host."""
        if not self.late:
            batch.pixels[place] = self._images[index]
            return
        stored, statistics = self._images.stored(index)
        batch.pixels.numpy()[place] = stored
        if statistics is not None:
            batch.statistics.numpy()[place] = statistics

    def finish(self, batch: Held) -> Shaped[Tensor, "b c h w"]:
        """Score and resample, on the device, what was not when it was read."""
        if not self.late:
            return batch.pixels
        scored = self._images.scored
        return finished(batch.pixels, batch.statistics if scored else None, size=self._size)
