"""Attacks on the pictures whose maps are held against boxes: what they are, before they have a run.

Axes: b batch, c channel, h row, w column, k class.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Num
from torch import Tensor, nn

from models.adversarial import REACH
from models.attacks import Attack, Victim, perturbed
from models.conjugates import CONJUGATE_PAIRS, Strength
from models.domain import Domain
from pipelines.assemble import pick_device
from pipelines.box_units import Attack as OnPictures
from pipelines.evaluation_runs import EvaluatedRun
from pipelines.feed import Pictures
from pipelines.robust import domain_of, valid_range
from pipelines.stores import StreamStore

Norm = Literal["linf", "l2"]
PAIRS: dict[Norm, str] = {"linf": "l1", "l2": "l2"}
"""Norm of a perturbation -> name of the Fenchel pair whose set is its ball."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxAttack:
    """Projected gradient ascent on the loss of all findings together.

    It begins at the picture itself, so that no random number is drawn and no batch matters.

    Attributes
    ----------
    norm, radius
        Of the perturbation, in shares of the valid range; in standard deviations of the brain
        where pictures are scores.
    steps
        Gradients taken; together they are long enough to cross the ball and come back.
    """

    norm: Norm = "linf"
    radius: float
    steps: int = 20

    @property
    def name(self) -> str:
        """Name it in tables."""
        return f"PGD {self.norm} {self.radius:g}"

    def on(self, run: EvaluatedRun, train: Pictures) -> OnPictures:
        """Return it as it acts on pictures that a run's network sees.

        Parameters
        ----------
        train
            What the run was trained on: pictures are moved within its range of values.
        """
        device = pick_device(run.config.train.device)
        valid = valid_range(StreamStore(train, device=device), len(train))
        domain = domain_of(run.config.normalisation, valid, device=device)
        pair = CONJUGATE_PAIRS[PAIRS[self.norm]](Strength(radius=self.radius))
        attack = Attack(
            pair=pair,
            radius=self.radius,
            form="ascent",
            steps=self.steps,
            step_size=REACH / self.steps,
        )
        return _Ascent(attack=attack, domain=domain)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ascent:
    attack: Attack
    domain: Domain

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], labels: Num[Tensor, "b k"]
    ) -> Float[Tensor, "b c h w"]:
        victim = Victim(model=model, labels=labels)
        return perturbed(images, victim, self.attack, domain=self.domain)
