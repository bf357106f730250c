"""Attacks: closed forms, sets that are never left, and models given back as they were."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from models.adversarial import OBJECTIVES, RobustSettings, robust
from models.attacks import (
    Attack,
    Form,
    Victim,
    gradient_penalty,
    guided,
    look,
    perturbed,
    starts,
)
from models.conjugates import CONJUGATE_PAIRS, Strength, unit_length
from models.domain import Domain
from models.errors import AttackError
from models.losses import sample_losses
from models.networks import build
from models.records import Prediction
from models.synchronised import synchronise
from tests.models.adversarial_cases import Toy, bytes_of, everywhere, linear, smooth

CASES = 10_000
ATTACKS = sorted(
    name for name, found in OBJECTIVES.items() if found.kind not in ("standard", "penalty")
)
BALLS = [name for name in ATTACKS if "elastic" not in name and name != "mask-guided"]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels_of(count: int, classes: int = 3) -> Tensor:
    return torch.arange(count) % classes


def losses_at(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return sample_losses(model(images), labels)


def moved_by(
    name: str, images: Tensor, victim: Victim, *, domain: Domain, **given: float
) -> Tensor:
    chosen = robust(name, RobustSettings(**given), image_size=(images.shape[2], images.shape[3]))
    generator = torch.Generator().manual_seed(1)
    start = starts(tuple(images.shape), generator=generator) if chosen.needs_starts else None
    masks = torch.rand(images[:, 0].shape, generator=generator).to(images)
    return chosen.perturbed(images, victim, domain=domain, start=start, masks=masks)


@pytest.fixture
def curved() -> Toy:
    torch.manual_seed(0)
    return smooth(2 * 4 * 5).double()


class TestFirstOrder:
    """On a smooth network the supremum is attained up to the square of the radius."""

    @pytest.mark.parametrize("name", ["l1", "elastic", "group", "l2"])
    def test_the_gap_falls_as_the_square(self, curved: Toy, name: str) -> None:
        images, labels = drawn(6, 2, 4, 5), labels_of(6)
        victim, gaps = Victim(model=curved, labels=labels), []
        sizes = [0.1 * 0.5**k for k in range(8)]
        for size in sizes:
            pair = CONJUGATE_PAIRS[name](Strength(radius=size, ridge=size, patch=2))
            delta = pair.maximiser(look(victim, images).gradient)
            value = losses_at(curved, images + delta, labels) - pair.conjugate(delta)
            clean = losses_at(curved, images, labels)
            penalty = gradient_penalty(images, victim, pair, domain=everywhere(2)).detach()
            penalised = clean + penalty
            found = perturbed(images, victim, Attack(pair=pair, radius=size), domain=everywhere(2))
            torch.testing.assert_close(found, images + delta)
            gaps.append((value - penalised).abs().mean().item())
        slopes = [math.log(before / after) / math.log(2) for before, after in pairwise(gaps)]
        assert min(slopes[3:]) >= 1.8
        assert gaps[0] > 0

    @pytest.mark.parametrize("name", ["l1", "elastic", "group", "l2"])
    def test_no_perturbation_nearby_is_worth_more(self, curved: Toy, name: str) -> None:
        """Beyond the square of the radius: 2,000 random perturbations that belong to the set."""
        images, labels = drawn(1, 2, 4, 5), labels_of(1)
        pair = CONJUGATE_PAIRS[name](Strength(radius=1e-3, ridge=1e-3, patch=2))
        victim = Victim(model=curved, labels=labels)
        delta = pair.maximiser(look(victim, images).gradient)
        reached = losses_at(curved, images + delta, labels) - pair.conjugate(delta)
        tries = pair.project(3e-3 * drawn(2000, 2, 4, 5, seed=1))
        tried = losses_at(curved, images + tries, labels.expand(2000)) - pair.conjugate(tries)
        assert tried.max() <= reached + 1e-5
        assert tried.mean() < reached

    @pytest.mark.parametrize("name", ["l1", "elastic", "group", "l2"])
    def test_more_steps_reach_more(self, curved: Toy, name: str) -> None:
        images, labels = 2 * drawn(12, 2, 4, 5), labels_of(12)
        values = []
        for form in (name, f"{name}-iterative"):
            pair = robust(form, RobustSettings(radius=0.4), image_size=(4, 5)).pair
            attacked = moved_by(
                form, images, Victim(model=curved, labels=labels), domain=everywhere(2), radius=0.4
            )
            value = losses_at(curved, attacked, labels)
            value -= pair.conjugate((attacked - images) * (1 - 1e-12))
            values.append(float(value.mean()))
        assert values[1] > values[0]


class TestLinearModel:
    """The gradient of the loss of two classes has one direction, wherever one stands."""

    @pytest.fixture
    def weights(self) -> Tensor:
        return drawn(2, 3, 5, 6, seed=3)

    @pytest.mark.parametrize(
        "name", ["fgsm", "pgd", "l1", "l1-iterative", "group", "group-iterative", "l2",
                 "l2-iterative", "pgd-l2"],
    )  # fmt: skip
    def test_every_attack_of_a_ball_is_its_closed_form(self, weights: Tensor, name: str) -> None:
        images, labels = drawn(4, 3, 5, 6, seed=4), labels_of(4, 2)
        away = torch.stack([weights[1 - label] - weights[label] for label in labels.tolist()])
        kind = OBJECTIVES[name].pair
        given = {"patch": 2} if kind == "group" else {}
        pair = CONJUGATE_PAIRS[kind](Strength(radius=0.2, patch=2))
        steps = {"steps": 40, "step_size": 1.0} if name == "pgd-l2" else {}
        found = moved_by(
            name, images, Victim(model=linear(weights), labels=labels), domain=everywhere(3),
            radius=0.2, **given, **steps,
        )  # fmt: skip
        tolerance = 1e-6 if name == "pgd-l2" else 1e-9  # from a random start, it closes in
        torch.testing.assert_close(found, images + pair.maximiser(away), rtol=0, atol=tolerance)

    def test_elastic_is_its_closed_form(self, weights: Tensor) -> None:
        images, labels = drawn(4, 3, 5, 6, seed=4), labels_of(4, 2)
        logits = images.flatten(1) @ weights.flatten(1).T
        truth = nn.functional.one_hot(labels, 2)
        slope = torch.einsum("bk,kchw->bchw", logits.softmax(1) - truth, weights)
        found = moved_by(
            "elastic", images, Victim(model=linear(weights), labels=labels),
            domain=everywhere(3), radius=0.1, ridge=0.7,
        )  # fmt: skip
        torch.testing.assert_close(found, images + 0.1 * slope.sign() + 1.4 * slope)

    def test_mask_guided_is_its_closed_form(self, weights: Tensor) -> None:
        images, labels, masks = drawn(4, 3, 5, 6), labels_of(4, 2), torch.zeros(4, 5, 6)
        masks[1:, :2], masks[3] = 1, 0.5
        away = torch.stack([weights[1 - label] - weights[label] for label in labels.tolist()])
        victim = Victim(model=linear(weights), labels=labels)
        found = guided(images, victim, masks, radius=0.3, domain=everywhere(3))
        expected = 0.3 * (1 - 2 * masks.double()[:, None]) * unit_length(away)
        torch.testing.assert_close(found - images, expected)
        assert torch.equal(found[3], images[3])

    def test_label_sets_are_attacked_on_their_mean_loss(self, weights: Tensor) -> None:
        images, labels = drawn(4, 3, 5, 6), torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        logits = images.flatten(1) @ weights.flatten(1).T
        slope = torch.einsum("bk,kchw->bchw", (logits.sigmoid() - labels) / 2, weights)
        victim = Victim(model=linear(weights), labels=labels)
        torch.testing.assert_close(look(victim, images).gradient, slope)
        found = moved_by("fgsm", images, victim, domain=everywhere(3), radius=0.1)
        torch.testing.assert_close(found, images + 0.1 * slope.sign())

    def test_a_radius_is_a_share_of_each_channels_range(self, weights: Tensor) -> None:
        """Bytes: a radius of 0.1 moves every stored value by 25.5, whatever the channel's scale."""
        domain, labels = bytes_of(3, torch.float64), labels_of(2, 2)
        stored = torch.full((2, 3, 5, 6), 120.0, dtype=torch.float64)
        scale, shift = domain.scale[:, None, None], domain.shift[:, None, None]
        images = (stored - shift) / scale
        victim = Victim(model=linear(weights), labels=labels)
        found = moved_by("fgsm", images, victim, domain=domain, radius=0.1) * scale + shift
        torch.testing.assert_close((found - stored).abs(), torch.full_like(stored, 25.5))


@pytest.fixture(scope="module")
def victims() -> tuple[Tensor, Victim]:
    torch.manual_seed(5)
    images = 3 * drawn(CASES, 1, 5, 5, seed=6, dtype=torch.float32)  # many outside already
    return images, Victim(model=smooth(25), labels=labels_of(CASES))


class TestSets:
    @pytest.mark.parametrize("radius", [0.004, 0.3])
    @pytest.mark.parametrize("name", ATTACKS)
    def test_no_picture_leaves_ball_or_range(
        self, victims: tuple[Tensor, Victim], name: str, radius: float
    ) -> None:
        images, victim = victims
        domain = bytes_of()
        found = moved_by(name, images, victim, domain=domain, radius=radius)
        assert found.isfinite().all()
        assert not torch.equal(found, images)
        low, high = domain.bounds(images)
        assert ((found >= low) & (found <= high)).all()
        if name not in BALLS:
            return
        pair = robust(name, RobustSettings(radius=radius), image_size=(5, 5)).pair
        delta = (found - images).double() / domain.step.double()
        rounding = 1e-6 / float(domain.step)  # of pictures of size 10 in float32
        shorter = delta.abs().sub(rounding).clamp(min=0).copysign(delta)
        assert pair.conjugate(shorter).tolist() == [0.0] * CASES

    def test_after_normalisation_bytes_stay_bytes(self, victims: tuple[Tensor, Victim]) -> None:
        generator, domain = torch.Generator().manual_seed(7), bytes_of()
        stored = torch.randint(0, 256, (2000, 1, 5, 5), generator=generator)
        images = (stored - domain.shift) / domain.scale
        victim = Victim(model=victims[1].model, labels=labels_of(2000))
        for name in ATTACKS:
            found = moved_by(name, images, victim, domain=domain, radius=0.9)
            back = found * domain.scale + domain.shift
            assert back.min() >= -1e-4
            assert back.max() <= 255 + 1e-4
            assert not torch.equal(found, images)

    @pytest.mark.parametrize("form", ["conditional", "ascent"])
    def test_a_random_start_is_in_the_set_and_matters(
        self, victims: tuple[Tensor, Victim], form: Form
    ) -> None:
        images, victim = victims[0][:50], Victim(model=victims[1].model, labels=labels_of(50))
        pair = CONJUGATE_PAIRS["l2"](Strength(radius=0.2))
        attack = Attack(pair=pair, radius=0.2, form=form, steps=2, step_size=0.1)
        start = starts((50, 1, 5, 5), generator=torch.Generator().manual_seed(0))
        seen: list[Tensor] = []

        def looking(pictures: Tensor):
            seen.append(pictures)
            return look(victim, pictures)

        begun = perturbed(
            images, victim, attack, domain=everywhere(1, torch.float32), start=start,
            looking=looking,
        )  # fmt: skip
        plain = perturbed(images, victim, attack, domain=everywhere(1, torch.float32))
        assert not torch.equal(seen[0], images)
        assert pair.conjugate((seen[0] - images) * 0.999).tolist() == [0.0] * 50
        assert not torch.equal(begun, plain)


class TestModelsAreGivenBack:
    @pytest.fixture(params=["resnet10-narrow/exact", "unet-encoder-narrow/dual-published"])
    def network(self, request: pytest.FixtureRequest) -> nn.Module:
        torch.manual_seed(0)
        name, variant = request.param.split("/")
        return build(name, variant=variant, in_channels=1, classes=3, image_size=32)

    @pytest.mark.parametrize("name", ["fgsm", "pgd", "mask-guided", "group-iterative"])
    def test_buffers_modes_gradients_and_random_state_are_as_before(
        self, network: nn.Module, name: str
    ) -> None:
        network.train()
        network.trunk.get_submodule(network.trunk.names[0]).eval()
        modes = [part.training for part in network.modules()]
        state = {key: value.clone() for key, value in network.state_dict().items()}
        network.head.weight.grad = torch.ones_like(network.head.weight)
        random = torch.get_rng_state()
        images = drawn(4, 1, 32, 32, dtype=torch.float32)
        victim = Victim(model=network, labels=labels_of(4))
        found = moved_by(name, images, victim, domain=bytes_of(), radius=0.05)
        assert not found.requires_grad
        assert not torch.equal(found, images)
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert [part.training for part in network.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)
        assert network.head.weight.grad.eq(1).all()
        assert all(v.grad is None for k, v in network.named_parameters() if k != "head.weight")

    def test_modes_come_back_after_an_error(self, network: nn.Module) -> None:
        network.train()
        victim = Victim(model=network, labels=labels_of(2))
        with pytest.raises(ValueError, match="network was"):
            look(victim, torch.zeros(2, 1, 16, 16))
        assert all(part.training for part in network.modules())

    def test_a_sample_is_attacked_without_regard_to_its_batch(self, network: nn.Module) -> None:
        network.train()
        images, labels = drawn(4, 1, 32, 32).float(), labels_of(4)
        whole = look(Victim(model=network, labels=labels), images).gradient
        one = look(Victim(model=network, labels=labels[1:2]), images[1:2]).gradient
        torch.testing.assert_close(whole[1:2], one, rtol=1e-3, atol=1e-7)

    def test_dropout_rests_and_draws_nothing(self) -> None:
        model = Toy(nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Dropout(0.5), nn.Linear(8, 2)))
        model.train()
        before = torch.get_rng_state()
        victim = Victim(model=model, labels=labels_of(3, 2))
        one, other = (look(victim, drawn(3, 1, 3, 3).float()).gradient for _ in range(2))
        assert torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_batch_normalisation_of_several_processes_waits_for_none(self) -> None:
        """There is no other process here: whoever asked for one would be refused."""
        network = build(
            "resnet10-narrow", variant="exact", in_channels=1, classes=3, image_size=32
        )  # fmt: skip
        synchronise(network, fused=False)
        network.train()
        images = drawn(2, 1, 32, 32).float()
        with pytest.raises(ValueError, match="process group"):
            network(images)
        victim = Victim(model=network, labels=labels_of(2))
        assert moved_by("pgd", images, victim, domain=bytes_of()).isfinite().all()

    def test_a_caller_that_records_no_gradients_can_attack(self, curved: Toy) -> None:
        images, victim = drawn(2, 2, 4, 5), Victim(model=curved, labels=labels_of(2))
        with torch.no_grad():
            found = moved_by("fgsm", images, victim, domain=everywhere(2), radius=0.1)
        assert (found != images).all()


class TestPrecision:
    def autocast(self, images: Tensor, model: nn.Module) -> Prediction:
        with torch.autocast("cpu", dtype=self.half):
            found = model(images)
        return Prediction(logits=found.logits.float(), maps=(), penalty=found.penalty.float())

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_gradients_are_float32_and_near_those_of_float32(self, half: torch.dtype) -> None:
        torch.manual_seed(0)
        self.half = half
        model, images = smooth(64), drawn(4, 1, 8, 8, dtype=torch.float32)
        victim = Victim(model=model, labels=labels_of(4), forward=self.autocast)
        found = look(victim, images).gradient
        exact = look(Victim(model=model, labels=labels_of(4)), images).gradient
        assert found.dtype == torch.float32
        torch.testing.assert_close(unit_length(found), unit_length(exact), rtol=0.1, atol=0.02)

    def test_a_sure_model_still_has_a_direction(self) -> None:
        """Its loss has a gradient of 1e-13 in the logits, which float16 would take for zero."""
        torch.manual_seed(0)
        self.half = torch.float16
        model, images = smooth(64, classes=2), drawn(4, 1, 8, 8, dtype=torch.float32)
        model.body[-1].bias.data = torch.tensor([30.0, 0.0])
        labels = torch.zeros(4, dtype=torch.long)
        victim = Victim(model=model, labels=labels, forward=self.autocast)
        gradient = look(victim, images).gradient
        assert 0 < gradient.abs().max() < 1e-10
        exact = look(Victim(model=model.double(), labels=labels), images.double()).gradient
        torch.testing.assert_close(
            unit_length(gradient).double(), unit_length(exact), rtol=0.1, atol=0.02
        )

    def test_no_gradient_is_no_step(self) -> None:
        model, images = smooth(64), drawn(4, 1, 8, 8, dtype=torch.float32)
        for value in model.parameters():
            nn.init.zeros_(value)
        victim = Victim(model=model, labels=labels_of(4))
        for name in ATTACKS:
            if OBJECTIVES[name].kind != "ascent":
                found = moved_by(name, images, victim, domain=everywhere(1, torch.float32))
                assert torch.equal(found, images)

    def test_a_gradient_that_overflows_moves_nothing(self) -> None:
        def exploding(images: Tensor, model: nn.Module) -> Prediction:
            found = model(images)
            scale = torch.tensor([1.0, float("inf")])[:, None]
            return Prediction(
                logits=_Scaled.apply(found.logits, scale), maps=(), penalty=found.penalty
            )

        torch.manual_seed(0)
        images = drawn(2, 1, 8, 8, dtype=torch.float32)
        victim = Victim(model=smooth(64), labels=labels_of(2), forward=exploding)
        gradient = look(victim, images).gradient
        assert gradient[0].any()
        assert not gradient[1].any()


class _Scaled(torch.autograd.Function):
    """The same values, with a gradient that is too large."""

    @staticmethod
    def forward(ctx, values, scale):
        ctx.save_for_backward(scale)
        return values.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * ctx.saved_tensors[0], None


class TestPenalty:
    def test_it_is_differentiated_through_the_gradient(self, curved: Toy) -> None:
        """Its derivative in a weight, against finite differences."""
        images, victim = drawn(3, 2, 4, 5), Victim(model=curved, labels=labels_of(3))
        weight, step = curved.body[1].weight, 1e-5
        for name in CONJUGATE_PAIRS:
            pair = CONJUGATE_PAIRS[name](Strength(radius=0.5, ridge=0.4, patch=2))

            def total(pair=pair) -> Tensor:
                return gradient_penalty(images, victim, pair, domain=everywhere(2)).sum()

            (slope,) = torch.autograd.grad(total(), weight)
            with torch.no_grad():
                weight[3, 5] += step
                above = total()
                weight[3, 5] -= 2 * step
                below = total()
                weight[3, 5] += step
            assert float(slope[3, 5]) == pytest.approx(
                float(above - below) / (2 * step), rel=1e-4, abs=1e-9
            )

    @pytest.mark.parametrize(
        "name", ["resnet10-narrow", "unet-encoder-narrow", "densenet-narrow", "vit-narrow"]
    )
    def test_every_network_can_be_differentiated_twice(self, name: str) -> None:
        torch.manual_seed(0)
        variant = "baseline" if name == "vit-narrow" else "exact"
        network = build(name, variant=variant, in_channels=1, classes=3, image_size=32)
        images = drawn(2, 1, 32, 32, dtype=torch.float32)
        state = {key: value.clone() for key, value in network.state_dict().items()}
        chosen = robust("l1-penalty", RobustSettings(), image_size=(32, 32))
        victim = Victim(model=network.train(), labels=labels_of(2))
        chosen.penalty(images, victim, domain=bytes_of()).mean().backward()
        grads = [value.grad for value in network.trunk.parameters() if value.grad is not None]
        assert sum(float(grad.abs().sum()) for grad in grads) > 0
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


class TestDomain:
    def test_a_picture_that_is_outside_goes_no_further(self) -> None:
        domain, images = bytes_of(), torch.tensor([-4.0, 0.0, 6.0]).view(1, 1, 1, 3)
        for sign, expected in ((-1.0, [-4.0, -2.5, -2.5]), (1.0, [3.875, 3.875, 6.0])):
            found = domain.moved(images, torch.full((1, 1, 1, 3), sign * 9))
            assert found.flatten().tolist() == expected

    def test_scores_are_moved_in_standard_deviations(self) -> None:
        ones = torch.ones(1)
        domain = Domain(scale=ones, shift=0 * ones, low=-2 * ones, high=5 * ones, unit=ones)
        found = domain.moved(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.5, -3.0]]]]))
        assert found.flatten().tolist() == [0.5, -2.0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"low": torch.zeros(2)}, "give one of each per channel"),
            ({"low": torch.full((1,), 255.0)}, "in which nothing can change"),
            ({"scale": torch.zeros(1)}, "both are above 0"),
            ({"unit": torch.zeros(1)}, "both are above 0"),
        ],
    )
    def test_a_domain_that_is_none(self, change: dict, message: str) -> None:
        given = {name: getattr(bytes_of(), name) for name in ("scale", "shift", "low", "high")}
        with pytest.raises(AttackError, match=message) as refusal:
            Domain(**{**given, **change})
        assert refusal.value.code == "BAD_DOMAIN"

    def test_channels_must_fit(self) -> None:
        with pytest.raises(AttackError, match="range has 2 channels and the pictures 1"):
            bytes_of(2).to(torch.zeros(1, 1, 2, 2))


class TestSettings:
    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_every_objective_has_defaults(self, name: str) -> None:
        chosen = robust(name, RobustSettings(), image_size=(224, 200))
        assert chosen.active == (name != "standard")
        assert chosen.strength.patch == 13
        assert chosen.weight == 1

    @pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "standard"])
    def test_without_weight_or_radius_it_is_standard_training(self, name: str) -> None:
        assert not robust(name, RobustSettings(weight=0.0), image_size=(32, 32)).active
        ridge = {"ridge": 0.0} if "elastic" in name else {}
        nothing = RobustSettings(radius=0.0, **ridge)
        assert not robust(name, nothing, image_size=(32, 32)).active

    def test_all_settings_arrive(self) -> None:
        settings = RobustSettings(
            radius=0.1, steps=4, step_size=0.5, random_start=False, weight=0.25
        )
        chosen = robust("pgd", settings, image_size=(32, 32))
        attack = chosen.attack
        assert (attack.steps, attack.step_size, attack.random_start) == (4, 0.5, False)
        assert (chosen.weight, chosen.strength.radius, attack.form) == (0.25, 0.1, "ascent")
        settings = RobustSettings(patch=3, across_channels=True)
        assert robust("group", settings, image_size=(32, 32)).strength.across_channels

    @pytest.mark.parametrize(
        ("name", "given", "code", "message"),
        [
            ("fgms", {}, "UNKNOWN_OBJECTIVE", "no objective 'fgms'; did you mean 'fgsm'"),
            ("fgsm", {"steps": 3}, "BAD_SETTING", r"steps is 3.*no use: leave it out.*pgd, "),
            ("l1", {"ridge": 0.1}, "BAD_SETTING", r"ridge is 0.1.*\(elastic, elastic-iter"),
            ("l1", {"patch": 2}, "BAD_SETTING", "patch is 2, of which objective 'l1'"),
            ("l1-penalty", {"random_start": True}, "BAD_SETTING", r"\(pgd, pgd-l2\)"),
            ("standard", {"weight": 0.5}, "BAD_SETTING", "weight is 0.5"),
            ("l1", {"weight": 1.5}, "BAD_SETTING", r"weight is 1.5; .* lies in \[0, 1\]"),
            ("l1", {"radius": -1.0}, "BAD_STRENGTH", "radius is -1.0"),
            ("pgd", {"steps": 0}, "BAD_ATTACK", "steps is 0; it must be above 0"),
            ("pgd", {"step_size": 0.0}, "BAD_ATTACK", "step_size is 0.0; it must be above 0"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, name: str, given: dict, code: str, message: str
    ) -> None:
        with pytest.raises(AttackError, match=message) as refusal:
            robust(name, RobustSettings(**given), image_size=(32, 32))
        assert refusal.value.code == code

    def test_masks_must_be_there_and_fit(self, curved: Toy) -> None:
        images, victim = drawn(2, 2, 4, 5), Victim(model=curved, labels=labels_of(2))
        chosen = robust("mask-guided", RobustSettings(), image_size=(4, 5))
        assert chosen.needs_masks
        with pytest.raises(AttackError, match="got none: train on data with masks") as refusal:
            chosen.perturbed(images, victim, domain=everywhere(2))
        assert refusal.value.code == "NO_MASKS"
        with pytest.raises(AttackError, match=r"masks are \[2, 5, 4\] for pictures") as refusal:
            chosen.perturbed(
                images,
                victim,
                domain=everywhere(2),
                masks=torch.zeros(2, 5, 4, dtype=torch.float64),
            )
        assert refusal.value.code == "BAD_MASKS"
