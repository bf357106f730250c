"""Rectifiers with rounded kinks, for as long as a derivative of a gradient is asked for.

The gradient of a network of rectifiers is constant between their kinks: its derivative is zero
nearly everywhere and tells nothing of how a map changes. With softplus in their place it does. The
model itself is not touched: calls of the functions are answered, not modules exchanged.

References
----------
Ghorbani, Abid, Zou, "Interpretation of neural networks is fragile", AAAI 2019, 2.
Dombrowski et al., "Explanations can be manipulated and geometry is to blame", NeurIPS 2019, 2.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

BETA = 10.0


@contextmanager
def softened(*, beta: float = BETA) -> Iterator[None]:
    """Answer ReLU, leaky and parametric ReLU by softplus, also where they are to work in place.

    Parameters
    ----------
    beta
        Sharpness of the softplus, for inputs whose root mean square is 1: each sample's inputs are
        measured by their own, which counts as a constant. The larger, the nearer to a rectifier.

    Raises
    ------
    ValueError
        If ``beta`` is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; the sharpness of a softplus is positive")
    with _Softening(beta):
        yield


def soft_relu(values: Tensor, *, beta: float) -> Tensor:
    """Softplus whose kink is as wide as the values of each sample (first axis) ask for."""
    inner = tuple(range(1, values.ndim))
    size = values.detach().square().mean(inner, keepdim=True).sqrt() if inner else values.detach()
    scale = size.abs().clamp_min(torch.finfo(values.dtype).tiny)
    return scale * functional.softplus(values / scale, beta=beta)


def _relu(values: Tensor, beta: float, *_: Any, **__: Any) -> Tensor:
    return soft_relu(values, beta=beta)


def _leaky(values: Tensor, beta: float, negative_slope: float = 0.01, *_: Any, **__: Any) -> Tensor:
    return negative_slope * values + (1 - negative_slope) * soft_relu(values, beta=beta)


def _parametric(values: Tensor, beta: float, weight: Tensor) -> Tensor:
    slope = weight.view(-1, *(1,) * (values.ndim - 2))
    return slope * values + (1 - slope) * soft_relu(values, beta=beta)


RECTIFIERS: Mapping[Any, Callable[..., Tensor]] = MappingProxyType(
    {
        **dict.fromkeys((functional.relu, torch.relu, torch.relu_, Tensor.relu), _relu),
        **dict.fromkeys((functional.relu_, Tensor.relu_), _relu),
        **dict.fromkeys((functional.leaky_relu, functional.leaky_relu_), _leaky),
        **dict.fromkeys((functional.prelu, torch.prelu), _parametric),
    }
)
"""Function -> the same with rounded kinks: of the values, the sharpness, and what else it takes."""


class _Softening(TorchFunctionMode):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a rectifier; leave every other function as it is."""
        named = dict(kwargs or {})
        soft = RECTIFIERS.get(func)
        if soft is None:
            return func(*args, **named)
        values = named.pop("input") if "input" in named else args[0]
        return soft(values, self.beta, *args[1:], **named)
