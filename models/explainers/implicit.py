"""Derivative of a Moreau gradient in the picture, through the proximal point it is taken at.

With f the score, z* = x - rho m the proximal point, H the Hessian of f there and T the threshold
(none, pixel by pixel, or by patches), the map obeys m = T(grad f(x - rho m)). Let D = R R be the
derivative of T, symmetric with eigenvalues in [0, 1]. Then

    J = dm/dx = (I + rho D H)^-1 D H = R (I + rho R H R)^-1 R H,

whose middle is symmetric, so that conjugate gradients solve it from products with H alone. Without
a threshold that is H (I + rho H)^-1.

Axes: b batch, c channel, h row, w column.

References
----------
Zhang, Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via Moreau
envelope", ICCV 2023 (the map).
Krantz, Parks, "The implicit function theorem", 2002 (its derivative).
Steihaug, "The conjugate gradient method and trust regions in large scale optimization", SIAM J.
Numer. Anal. 20(3), 1983 (what is done where the curvature is not positive).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.explainers.proximal import patch_sums
from models.explainers.smoothed import SmoothedScore


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitDerivative:
    """The linear map J between changes of the picture and of the Moreau gradient.

    Attributes
    ----------
    score
        What the map explains.
    point
        The proximal point z*.
    moreau
        The Moreau gradient m, before channels are summed.
    rho, eta, patch
        As of ``MoreauGrad``.
    steps
        Of the conjugate gradients, at most.
    tolerance
        Relative residual at which they end.
    """

    score: SmoothedScore
    point: Float[Tensor, "b c h w"]
    moreau: Float[Tensor, "b c h w"]
    rho: float
    eta: float
    patch: int
    steps: int
    tolerance: float

    def forward(
        self, direction: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """J times a change of the picture; and how far each sample's system is from solved."""
        solved, residual = self._solve(self.root(self._curved(direction)))
        return self.root(solved), residual

    def pull(
        self, cotangent: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """J transposed times weights of the map's values; and the residuals, as ``forward``."""
        solved, residual = self._solve(self.root(cotangent))
        return self._curved(self.root(solved)), residual

    def pull_masked(self, cotangent: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weights of the values pulled back as if the proximal step did not move: H M.

        M keeps the values that are not zero. It is the derivative of the masked gradient at a
        point that stays beside the picture, which is another map than the one explained by.
        """
        return self._curved((self.moreau != 0) * cotangent)

    def root(self, vector: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply R, the square root of the threshold's derivative at the map.

        Within a patch that is left it is 1 along the map and sqrt(1 - eta / |gradient|) across,
        where the patch of the gradient is longer by eta than that of the map.
        """
        if not self.eta:
            return vector
        active = self.moreau != 0
        if not self.patch:
            return active * vector
        length = patch_sums(self.moreau.square(), patch=self.patch).sqrt()
        unit = self.moreau / length.where(length > 0, 1.0)
        along = unit * patch_sums(unit * vector, patch=self.patch)
        across = (length / (length + self.eta)).sqrt() * (vector - along)
        return (length > 0) * (along + across)

    def _curved(self, vector: Tensor) -> Tensor:
        return self.score.hessian_product(self.point, vector)

    def _solve(self, right: Tensor) -> tuple[Tensor, Tensor]:
        return conjugate_gradients(
            lambda v: v + self.rho * self.root(self._curved(self.root(v))),
            right,
            steps=self.steps,
            tolerance=self.tolerance,
        )


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Float[Tensor, "b c h w"],
    *,
    steps: int,
    tolerance: float,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
    """Solve a symmetric positive definite system for each sample.

    Returns the solutions and their relative residuals. A sample that meets a direction of no
    positive curvature is left as it stands, with an infinite residual; if that is the first one,
    its solution is the right side.
    """
    solution, left, way = torch.zeros_like(right), right.clone(), right.clone()
    first = size = _dot(left, left)
    open_, bent = size > 0, size < 0
    for step in range(steps):
        if not bool(open_.any()):
            break
        image = apply(way)
        curvature = _dot(way, image)
        bent |= open_ & ~(curvature > 0)
        open_ = open_ & ~bent
        if not step:
            solution = torch.where(bent, right, solution)
        length = torch.where(open_, size / curvature, 0)
        solution, left = solution + length * way, left - length * image
        before, size = size, torch.where(open_, _dot(left, left), size)
        way = left + torch.where(open_, size / before, 0) * way
        open_ = open_ & (size > tolerance**2 * first)
    residual = torch.where(first > 0, (size / first).sqrt(), 0.0)
    return solution, residual.masked_fill(bent, torch.inf)[:, 0, 0, 0]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((1, 2, 3), keepdim=True)
