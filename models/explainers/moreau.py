"""MoreauGrad: the gradient of a score's Moreau envelope, plain, sparse and group-sparse.

With f the smoothed score and z* = argmin_z f(z) + ||z - x||^2 / (2 rho) + eta * penalty(z - x), the
map is (x - z*) / rho: the gradient of f at z*, thresholded where eta is positive.

Axes: b batch, c channel, h row, w column.

References
----------
Zhang, Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via Moreau
envelope", ICCV 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError
from models.explainers.base import Explainer
from models.explainers.implicit import ImplicitDerivative
from models.explainers.laws import Law, judged, relative
from models.explainers.proximal import block_threshold, soft_threshold
from models.explainers.scoring import check_request, explaining
from models.explainers.smoothed import SmoothedScore
from models.records import Attribution, Verdict

FIXED_POINT = Law(
    name="Moreau fixed point",
    sound=0.02,
    refused=0.3,
    says="between the map and the thresholded gradient at its own proximal point",
    way_out="raise most_steps or draws, or lower rho",
)

CG_STEPS = 500
UNSOLVED = 1e-3  # relative residual above which a derivative is refused
SMALLEST_RHO = 1e-9


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MoreauGrad(Explainer):
    """Gradient of the Moreau envelope of the target's smoothed logit; signs are the gradient's.

    The proximal point is found by proximal gradient steps from x, which begin at length rho (at
    which they are the fixed-point iteration) and are halved where they do not come nearer. The map
    is that of the iterate nearest to the fixed point, so that zeros are exact. Noise is drawn once
    from the seed, the same for all samples and steps.

    Attributes
    ----------
    eta
        Weight of the sparsity; zero is the plain method. Published: 5e-3, and 5e-2 for groups.
    patch
        Side of the square groups in pixels; zero is sparsity pixel by pixel. Published: 14.
    rho
        Of the envelope. It is sound below the smoothing noise over the score's steepest slope
        seen, beyond which the minimiser may not be unique; the verdict says so.
    spread
        Standard deviation of the smoothing noise, as a share of the picture's range; zero explains
        the score as it is.
    draws
        Noise pictures.
    tolerance
        Relative distance from the fixed point at which a sample is left.
    most_steps
        Steps at most.
    batch_size
        Noisy copies that the model sees at once. A GPU is filled by all copies of all pictures,
        ``draws`` times as many as pictures; a processor gains nothing from more than a few.
    """

    least: ClassVar[Mapping[str, int | float]] = MappingProxyType(
        {"eta": 0, "patch": 0, "spread": 0, "draws": 1, "most_steps": 1, "rho": SMALLEST_RHO}
    )
    eta: float = 0.0
    patch: int = 0
    rho: float = 1.0
    spread: float = 0.1
    draws: int = 32
    tolerance: float = 2e-3
    most_steps: int = 100
    batch_size: int = 8
    seed: int = 0

    @property
    def name(self) -> str:
        """``moreaugrad``, ``moreaugrad-sparse`` or ``moreaugrad-group``."""
        if not self.eta:
            return "moreaugrad"
        return "moreaugrad-group" if self.patch else "moreaugrad-sparse"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size, summed over channels."""
        score = self._smoothed(model, images, target)
        found = self._solve(score, images)
        values = -found.best / self.rho
        return (
            judged(
                values.sum(1),
                target,
                method=self.name,
                law=FIXED_POINT,
                residual=found.residual,
                verdicts=self._verdicts(found, score),
            ),
        )

    def derivative(
        self,
        model: nn.Module,
        images: Float[Tensor, "b c h w"],
        target: Int[Tensor, " b"],
        direction: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        """Change of the map, before channels are summed, along a direction of the picture.

        Through the proximal point, as ``ImplicitDerivative``. It needs rho times the curvature
        to stay below 1.

        Raises
        ------
        ExplainerError
            If the curvature is too large for rho, and as ``__call__``.
        """
        check_request(model, images, target)
        with explaining(images, model) as pictures:
            implicit = self.linearised(model, pictures, target, steps=CG_STEPS)
            change, residual = implicit.forward(direction)
        worst = float(residual.max())
        if not worst <= UNSOLVED:
            raise ExplainerError(
                "NO_DERIVATIVE",
                f"the derivative of a map is unsolved by {worst:.2g}: rho {self.rho:g} times the "
                "curvature of the score is not below 1; lower rho",
            )
        return change

    def linearised(
        self,
        model: nn.Module,
        images: Float[Tensor, "b c h w"],
        target: Int[Tensor, " b"],
        *,
        steps: int,
        tolerance: float = 0.0,
    ) -> ImplicitDerivative:
        """Find the map, before channels are summed, and its derivative, inside ``explaining``.

        Parameters
        ----------
        steps, tolerance
            Of the conjugate gradients: products with the Hessian at most, and the relative
            residual that is enough (at least the rounding of the pictures).
        """
        score = self._smoothed(model, images, target)
        delta = self._solve(score, images).best
        return ImplicitDerivative(
            score=score,
            point=images + delta,
            moreau=-delta / self.rho,
            rho=self.rho,
            eta=self.eta,
            patch=self.patch if self.eta else 0,
            steps=steps,
            tolerance=max(tolerance, torch.finfo(images.dtype).eps),
        )

    def _threshold(self, values: Tensor, threshold: float | Tensor) -> Tensor:
        if not self.eta:
            return values
        if self.patch:
            return block_threshold(values, threshold, patch=self.patch)
        return soft_threshold(values, threshold)

    def _smoothed(self, model: nn.Module, images: Tensor, target: Tensor) -> SmoothedScore:
        return SmoothedScore.around(
            model,
            images,
            target,
            spread=self.spread,
            draws=self.draws,
            seed=self.seed,
            batch_size=self.batch_size,
        )

    def _solve(self, score: SmoothedScore, images: Tensor) -> "_Search":
        search = _Search.start(images, step=self.rho)
        for _ in range(self.most_steps):
            open_ = torch.nonzero(search.residual > self.tolerance)[:, 0]
            if not len(open_):
                break
            delta = search.delta[open_]
            gradient, steepest = score.gradient(images[open_] + delta, open_)
            fixed = -self.rho * self._threshold(gradient, self.eta)
            search.record(open_, fixed, gradient, steepest)
            steps = search.step[open_][:, None, None, None]
            moved = delta - steps * (gradient + delta / self.rho)
            search.delta[open_] = self._threshold(moved, steps * self.eta)
        return search

    def _verdicts(self, search: "_Search", score: SmoothedScore) -> tuple[Verdict, ...]:
        verdicts = list(FIXED_POINT.judge(search.residual))
        bounds = (score.scale.flatten() / search.steepest).tolist()
        empty = (search.best.flatten(1) == 0).all(dim=1).tolist()
        for i, verdict in enumerate(verdicts):
            if self.spread and self.rho >= bounds[i]:
                said = (
                    f"rho {self.rho:g} is not below {bounds[i]:.3g}, the noise over the steepest "
                    "slope seen: the nearest point may not be the only one; lower rho"
                )
                verdicts[i] = _doubted(verdict, said)
            elif not self.spread and self.rho * float(search.curvature[i]) >= 1:
                said = (
                    f"rho {self.rho:g} times the curvature seen, {search.curvature[i]:.3g}, is not "
                    "below 1: the nearest point may not be the only one; lower rho"
                )
                verdicts[i] = _doubted(verdict, said)
            elif self.eta and empty[i]:
                said = f"eta {self.eta:g} is above every gradient: the map is empty; lower it"
                verdicts[i] = _doubted(verdict, said)
        return tuple(verdicts)


def _doubted(verdict: Verdict, reason: str) -> Verdict:
    if verdict.word == "refused":
        return verdict
    joined = reason if verdict.word == "sound" else f"{verdict.reason}; {reason}"
    return Verdict(word="doubtful", reason=joined)


@dataclass(slots=True, kw_only=True)
class _Search:
    """Where the search for each sample's proximal point stands; ``delta`` is z - x.

    ``best`` is the iterate nearest to its fixed point, ``residual`` how near, relative.
    """

    delta: Float[Tensor, "b c h w"]
    best: Float[Tensor, "b c h w"]
    residual: Float[Tensor, " b"]
    last: Float[Tensor, " b"]
    step: Float[Tensor, " b"]
    steepest: Float[Tensor, " b"]
    curvature: Float[Tensor, " b"]
    before: tuple[Tensor, Tensor]

    @classmethod
    def start(cls, images: Float[Tensor, "b c h w"], *, step: float) -> "_Search":
        """At the pictures themselves."""
        far = torch.full((len(images),), torch.inf).to(images)
        none = torch.zeros_like(far)
        return cls(
            delta=torch.zeros_like(images),
            best=torch.zeros_like(images),
            residual=far,
            last=far.clone(),
            step=torch.full_like(far, step),
            steepest=none,
            curvature=none.clone(),
            before=(torch.zeros_like(images), torch.zeros_like(images)),
        )

    def record(self, open_: Tensor, fixed: Tensor, gradient: Tensor, steepest: Tensor) -> None:
        """Keep the iterates that are nearest so far; halve the steps of those that moved away."""
        delta = self.delta[open_]
        moved, turned = (
            (new - old[open_]).flatten(1).norm(dim=1)
            for new, old in zip((delta, gradient), self.before, strict=True)
        )
        seen = torch.where(moved > 0, turned / moved, torch.zeros_like(moved))
        self.curvature[open_] = torch.maximum(self.curvature[open_], seen)
        self.before[0][open_], self.before[1][open_] = delta, gradient
        apart = (delta - fixed).flatten(1).norm(dim=1)
        size = torch.maximum(delta.flatten(1).norm(dim=1), fixed.flatten(1).norm(dim=1))
        residual = relative(apart, size, floor=torch.finfo(size.dtype).tiny)
        nearer = open_[residual < self.residual[open_]]
        self.best[nearer] = self.delta[nearer]
        away = open_[residual >= self.last[open_]]
        self.step[away] /= 2
        self.residual[open_] = torch.minimum(self.residual[open_], residual)
        self.last[open_] = residual
        self.steepest[open_] = torch.maximum(self.steepest[open_], steepest)
