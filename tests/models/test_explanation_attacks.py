"""Attacks on explanations: what they never break, what they cannot change, and what they find."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.errors import AttackError, ExplainerError, MetricError, ShapeError
from models.explainers import (
    EXPLAINERS,
    AttentionMaps,
    GradientTimesInput,
    MoreauGrad,
    Occlusion,
    SimpleGradient,
    SmoothGrad,
)
from models.explanation_attacks import ATTACKS, GaussianNoise, RandomSearch, TopKAttack, share_slope
from models.explanation_case import share_inside
from models.explanation_limits import Limits
from models.metrics import stability
from models.metrics.similarity import cosine, normalised_distance, top_cells, top_k_intersection
from tests.models.explainer_cases import (
    Linear,
    Quadratic,
    assert_as_found,
    classifier,
    images,
    snapshot,
)

WHICH = torch.tensor([0, 1])
QUICK_ATTACKS = {name: replace(attack, steps=3) for name, attack in ATTACKS.items()}
EXPLAINERS_TRIED = {
    "gradient": SimpleGradient(),
    "smoothgrad": SmoothGrad(draws=2),
    "attention": AttentionMaps(),
    "moreaugrad": MoreauGrad(draws=2, most_steps=3, rho=0.1),
}


def limits_of(radius, *, low=-6.0, high=6.0, decision="class", dtype=torch.float32):
    bounds = [torch.full((1, 1, 1, 1), value, dtype=dtype) for value in (low, high)]
    return Limits(radius=radius, low=bounds[0], high=bounds[1], decision=decision)


def attacked(attack, explainer, model, x, target, limits, seed=0, **options):
    seeds = torch.randint(2**62, (len(x),), generator=torch.Generator().manual_seed(seed))
    return attack(explainer, model, x, target, limits=limits, seeds=seeds, **options)


@pytest.fixture(scope="module")
def model():
    return classifier("exact")


@pytest.fixture(scope="module")
def cases(model):
    x = images(3)
    return x, model(x).logits.argmax(1)


def test_changed_pictures_never_leave_the_ball_and_the_range():
    """10,000 pictures, with changes from far inside to far outside of both."""
    generator = torch.Generator().manual_seed(0)
    for radius in (0.0, 1e-4, 0.1, 1.0, 30.0):
        low = -torch.rand(2000, 2, 1, 1, generator=generator)
        high = torch.rand(2000, 2, 1, 1, generator=generator)
        share = torch.rand(2000, 2, 4, 4, generator=generator)
        x = (low + share * (high - low)).clamp(low, high)
        size = torch.logspace(-3, 3, 2000)[:, None, None, None]
        limits = Limits(radius=radius, low=low, high=high)
        changed = limits.within(x, size * torch.randn(x.shape, generator=generator))
        assert ((changed >= low) & (changed <= high)).all()
        length = (changed.double() - x.double()).flatten(1).norm(dim=1)
        rounding = 1e-6 * x.flatten(1).norm(dim=1).max()  # of adding a change to a picture
        assert (length <= radius + rounding).all()
        assert radius == 0 or (length > 0.5 * min(radius, 1e-3)).all()


def test_changes_inside_are_left_alone():
    x = images(2, side=4)
    delta = 0.01 * images(2, seed=1, side=4)
    assert torch.equal(limits_of(10.0).within(x, delta), x + delta)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("explainer", EXPLAINERS_TRIED)
def test_without_a_radius_nothing_changes(model, cases, attack, explainer):
    x, target = cases
    short = replace(ATTACKS[attack], steps=1)
    found = attacked(short, EXPLAINERS_TRIED[explainer], model, x, target, limits_of(0.0))
    assert torch.equal(found.images, x)
    assert torch.equal(found.before, found.after)
    assert torch.equal(found.logits_before, found.logits_after)
    assert found.possible.all()
    assert (normalised_distance(found.before, found.after) == 0).all()
    one = torch.ones(3).double()
    torch.testing.assert_close(top_k_intersection(found.before, found.after), one)
    torch.testing.assert_close(cosine(found.before, found.after), one)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacked_pictures_obey_all_limits(model, cases, attack):
    x, target = cases
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    limits = Limits(radius=4.0, low=low, high=high)
    found = attacked(QUICK_ATTACKS[attack], SimpleGradient(), model, x, target, limits)
    assert ((found.images >= low) & (found.images <= high)).all()
    length = (found.images - x).flatten(1).norm(dim=1)
    assert (length <= 4.0 * (1 + 1e-5)).all()
    assert found.possible.all()
    assert (length > 0.1).all()
    with torch.no_grad():
        logits = model(found.images).logits
    assert torch.equal(logits.argmax(1), target)
    torch.testing.assert_close(found.logits_after, logits)
    (own,) = SimpleGradient()(model, found.images, target)
    torch.testing.assert_close(found.after, own.values, rtol=1e-4, atol=1e-6)
    share = share_inside(own.values, top_cells(found.before))
    torch.testing.assert_close(found.share, share, rtol=1e-4, atol=1e-6)


def quadratic_case():
    x = 3 * images(2, side=3, seed=4)[:, :1].double()
    limits = limits_of(2.0, low=-20.0, high=20.0, dtype=torch.float64)
    return Quadratic(), x, WHICH, replace(limits, decision="class")


class Calm(nn.Module):
    """A quadratic score whose class no change of the picture turns."""

    def __init__(self):
        super().__init__()
        self.inner = Quadratic()

    def forward(self, pictures):
        score = self.inner(pictures)[:, :1]
        return torch.cat([score, score - 1], dim=1)


@pytest.mark.parametrize("explainer", [SimpleGradient(), MoreauGrad(spread=0.0, rho=0.5)])
def test_descent_beats_search_and_search_beats_noise_where_the_curvature_is_known(explainer):
    _, x, _, limits = quadratic_case()
    target = torch.zeros(2, dtype=torch.long)
    found = {
        name: attacked(ATTACKS[name], explainer, Calm(), x, target, limits)
        for name in ("top-k", "search", "noise")
    }
    before = share_inside(found["noise"].before, top_cells(found["noise"].before))
    assert (found["top-k"].share < found["search"].share).all()
    assert (found["search"].share < before).all()
    assert (found["top-k"].share < found["noise"].share - 0.03).all()
    alike = {
        name: top_k_intersection(each.before, each.after).mean() for name, each in found.items()
    }
    assert alike["top-k"] < alike["noise"]


def test_more_steps_never_do_less(model, cases):
    x, target = cases
    shares = [
        attacked(TopKAttack(steps=steps), SimpleGradient(), model, x, target, limits_of(3.0)).share
        for steps in (1, 3, 5)
    ]
    assert (shares[1] <= shares[0]).all()
    assert (shares[2] <= shares[1]).all()
    assert shares[2].mean() < shares[0].mean()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("explainer", [SimpleGradient(), SmoothGrad(draws=2)])
def test_nothing_changes_the_gradient_of_a_linear_score(attack, explainer):
    model, x = Linear(classes=2), images(2, side=6)
    target = model(x).argmax(1)
    limits = limits_of(100.0, low=-1e3, high=1e3)
    found = attacked(QUICK_ATTACKS[attack], explainer, model, x, target, limits)
    torch.testing.assert_close(found.after, found.before, rtol=1e-5, atol=1e-7)
    assert (top_k_intersection(found.before, found.after) > 0.99).all()


def test_the_gradient_times_the_picture_of_a_linear_score_does_change():
    model, x = Linear(classes=2), images(2, side=6)
    target = model(x).argmax(1)
    found = attacked(TopKAttack(), GradientTimesInput(), model, x, target, limits_of(3.0))
    assert (top_k_intersection(found.before, found.after) < 0.9).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_batch_is_its_parts_and_seeds_give_one_answer(model, cases, attack):
    x, target = cases
    run = (replace(ATTACKS[attack], steps=2), SmoothGrad(draws=2, batch_size=2), model)
    limits, seeds = limits_of(3.0), torch.tensor([3, 1, 4])
    whole = run[0](*run[1:], x, target, limits=limits, seeds=seeds)
    again = run[0](*run[1:], x, target, limits=limits, seeds=seeds)
    assert torch.equal(whole.images, again.images)
    for i in range(2):
        one = slice(i, i + 1)
        part = run[0](*run[1:], x[one], target[one], limits=limits, seeds=seeds[one])
        # a sign may turn where the slope is zero but for rounding
        same = (part.images - whole.images[one]).abs() < 1e-3
        assert same.float().mean() > 0.98
        torch.testing.assert_close(part.share, whole.share[one], rtol=0, atol=2e-3)


@pytest.mark.parametrize("attack", ["search", "noise"])
def test_other_seeds_give_other_pictures(model, cases, attack):
    x, target = cases
    found = [
        attacked(
            QUICK_ATTACKS[attack], SimpleGradient(), model, x, target, limits_of(3.0), seed=seed
        )
        for seed in (0, 1)
    ]
    assert not torch.equal(found[0].images, found[1].images)
    assert not torch.equal(found[0].images[0] - x[0], found[0].images[1] - x[1])


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_model_comes_back_as_it_was(attack):
    model, x = classifier("exact"), images(2)
    target = model(x).logits.argmax(1).detach()
    model.train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = snapshot(model)
    attacked(QUICK_ATTACKS[attack], MoreauGrad(draws=2, most_steps=2), model, x, target,
             limits_of(3.0))  # fmt: skip
    assert_as_found(model, before)


class Failing(nn.Module):
    """Fails at the n-th look."""

    def __init__(self, looks):
        super().__init__()
        self.inner, self.looks = Quadratic(), looks
        self.act = nn.ReLU()

    def forward(self, pictures):
        self.looks -= 1
        if not self.looks:
            raise RuntimeError("no more")
        return self.inner(self.act(pictures))


@pytest.mark.parametrize("looks", range(1, 9))
def test_the_model_comes_back_when_it_fails(looks):
    model, x = Failing(looks).train(), images(2, side=3)[:, :1].double()
    limits = limits_of(1.0, dtype=torch.float64)
    before = snapshot(model)
    with pytest.raises(ExplainerError, match="no more"):
        attacked(TopKAttack(), SimpleGradient(), model, x, WHICH, limits)
    assert_as_found(model, before)
    assert (torch.relu(torch.tensor([-1.0])) == 0).all()  # and rectifiers are hard again


class Touchy(nn.Module):
    """Any change of more than ``reach`` turns the class."""

    def __init__(self, x, reach):
        super().__init__()
        self.inner, self.x, self.reach = Quadratic(), x, reach

    def forward(self, pictures):
        score = self.inner(pictures)[:, :1]
        far = (pictures.detach() - self.x).square().sum((1, 2, 3)).sqrt() - self.reach
        return torch.cat([score, score + far[:, None]], dim=1)


@pytest.mark.parametrize("attack", ["top-k", "transfer", "search", "noise"])
def test_where_every_change_turns_the_class_nothing_is_returned(attack):
    x = images(2, side=3)[:, :1].double()
    target = torch.zeros(2, dtype=torch.long)
    limits = limits_of(1.0, dtype=torch.float64)
    found = attacked(ATTACKS[attack], SimpleGradient(), Touchy(x, 1e-5), x, target, limits)
    assert not found.possible.any()
    assert torch.equal(found.images, x)
    assert torch.equal(found.before, found.after)


def test_steps_that_turn_the_class_are_taken_back_and_halved():
    x = images(2, side=3)[:, :1].double()
    target = torch.zeros(2, dtype=torch.long)
    limits = limits_of(1.0, dtype=torch.float64)
    found = attacked(TopKAttack(), SimpleGradient(), Touchy(x, 0.1), x, target, limits)
    length = (found.images - x).flatten(1).norm(dim=1)
    assert found.possible.all()
    assert ((length > 0.02) & (length <= 0.1)).all()
    assert (found.share < share_inside(found.before, top_cells(found.before))).all()


def test_a_set_of_classes_keeps_every_one():
    before = torch.tensor([[1.0, -2.0, 0.5], [1.0, -2.0, 0.5], [3.0, -1.0, -1.0]])
    after = torch.tensor([[2.0, -0.1, 0.1], [1.0, 2.0, 3.0], [-0.1, -0.2, -0.3]])
    assert limits_of(1.0, decision="set").kept(before, after).tolist() == [True, False, False]
    assert limits_of(1.0).kept(before, after).tolist() == [True, False, True]


def test_an_empty_map_is_left_as_it_is():
    class Constant(nn.Module):
        def forward(self, pictures):
            return torch.stack([pictures.sum((1, 2, 3)) * 0, pictures.sum((1, 2, 3)) * 0 - 1], 1)

    x = images(2, side=6)
    target = torch.zeros(2, dtype=torch.long)
    found = attacked(TopKAttack(), SimpleGradient(), Constant(), x, target, limits_of(1.0))
    assert torch.equal(found.images, x)
    assert found.share.isnan().all()


def test_occlusion_is_attacked_by_transfer_and_search_alone(model, cases):
    x, target = cases
    for name in ("transfer", "search"):
        found = attacked(QUICK_ATTACKS[name], Occlusion(cells=3), model, x, target, limits_of(3.0))
        assert (found.share <= share_inside(found.before, top_cells(found.before))).all()
        assert not torch.equal(found.after, found.before)
    with pytest.raises(ExplainerError, match=r"'occlusion' have no derivative .* by 'search'"):
        attacked(ATTACKS["top-k"], Occlusion(cells=3), model, x, target, limits_of(3.0))


def test_each_level_can_be_attacked_for_itself(model, cases):
    x, target = cases
    explainer = EXPLAINERS["attention"]
    found = attacked(QUICK_ATTACKS["top-k"], explainer, model, x, target, limits_of(3.0), level=1)
    own = explainer(model, found.images, target)[1].values
    torch.testing.assert_close(found.after, own, rtol=1e-4, atol=1e-6)
    with pytest.raises(ExplainerError, match="'attention' gives 2 maps, and number 2 is to be"):
        attacked(ATTACKS["noise"], explainer, model, x, target, limits_of(3.0), level=2)


@pytest.mark.parametrize("radius", [-1.0, float("nan"), float("inf")])
def test_a_radius_is_a_length(radius):
    with pytest.raises(AttackError, match=r"radius is .*; the length of a change is 0 or more"):
        limits_of(radius)


def test_pictures_outside_of_the_range_are_refused(model, cases):
    x, target = cases
    with pytest.raises(AttackError, match="outside of the range that attacked pictures are"):
        attacked(ATTACKS["noise"], SimpleGradient(), model, x, target, limits_of(1.0, high=0.5))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ExplainerError, match="steps is 0; it must be 1 or more"):
        GaussianNoise(steps=0)
    with pytest.raises(ExplainerError, match=r"stride is -0\.1; it must be 0 or more"):
        RandomSearch(stride=-0.1)


def test_the_share_and_its_slope_by_autograd():
    maps = images(1, side=7)[0].double().requires_grad_()
    cells = top_cells(maps.detach())
    share = share_inside(maps, cells)
    by_hand = [
        maps[i].abs()[cells[i] > 0.5].sum().item() / maps[i].abs().sum().item() for i in range(2)
    ]
    assert share.tolist() == pytest.approx(by_hand, abs=0.02)  # 40 % of 49 cells is no whole number
    (slope,) = torch.autograd.grad(share.sum(), maps)
    torch.testing.assert_close(share_slope(maps.detach(), cells), slope)
    assert (share_slope(torch.zeros(1, 3, 3), torch.ones(1, 3, 3)) == 0).all()


def test_top_cells_are_those_of_the_intersection():
    maps = images(2, side=8)[:, 0]
    maps[0, 0] = 0.0
    cells = top_cells(maps)
    torch.testing.assert_close(cells.sum((1, 2)), 0.4 * (maps != 0).sum((1, 2)).double())
    least = maps.abs().masked_fill(cells == 0, torch.inf).amin((1, 2))
    most = maps.abs().masked_fill(cells > 0, 0).amax((1, 2))
    assert (least >= most).all()
    with pytest.raises(MetricError, match=r"share is 0\.0; it is a share of cells"):
        top_cells(maps, share=0.0)


def test_stability_is_the_mean_over_ordered_pairs_of_seeds():
    maps = [images(3, seed=seed, side=8)[:, 0] for seed in range(3)]
    maps[2] = maps[0].clone()
    slow = torch.stack(
        [top_k_intersection(maps[i], maps[j]) for i in range(3) for j in range(3) if i != j]
    ).mean(0)
    torch.testing.assert_close(stability(maps), slow)
    torch.testing.assert_close(stability(maps[:1] * 4), torch.ones(3).double())
    assert (stability(maps) < 1).all()
    expected = (1 + 2 * cosine(maps[0], maps[1])) / 3
    torch.testing.assert_close(stability(maps, similarity=cosine), expected)


def test_stability_needs_seeds_on_one_grid():
    maps = images(3, side=8)[:, 0]
    with pytest.raises(MetricError, match="maps of 1 networks are given; agreement needs two"):
        stability([maps])
    with pytest.raises(ShapeError, match="cannot be compared cell by cell"):
        stability([maps, maps[:, :4]])
