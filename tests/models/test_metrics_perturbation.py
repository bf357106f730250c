import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, balanced_accuracy_score
from torch.nn.functional import interpolate

from models.errors import MetricError, ShapeError
from models.metrics import (
    FRACTIONS,
    NoisyLinearImputation,
    PerturbationCurve,
    balanced_mean,
    blur_fill,
    chance,
    mean_fill,
    perturbation_curve,
    perturbed,
    probability,
    right,
    score,
    scores,
    zero_fill,
)
from models.metrics import faithfulness as faith
from models.metrics.perturbation import removal_ranks
from tests.reference import pixel_flipping_net as toy

GOLDEN = Path(__file__).parent / "golden" / "quantus.npz"
SIDE, CLASSES = 8, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0):
    """A linear softmax classifier with a bend: fixed weights, any batch."""
    drawn = torch.randn(2 * SIDE * SIDE, CLASSES, generator=generator(seed))
    return lambda images: torch.tanh(images.flatten(1) @ drawn)


def pictures(count=3, seed=1):
    return torch.randn(count, 2, SIDE, SIDE, generator=generator(seed))


def maps(count=3, side=SIDE, seed=2):
    return torch.rand(count, side, side, generator=generator(seed))


def plainly(values, images, forward, fill, order):
    """One picture, one step, one pass; the order by sorting pixels as Python does."""
    found = []
    for value, image, own in zip(values, images, fill, strict=True):
        pixels = sorted(range(SIDE * SIDE), key=lambda p, v=value.flatten(): float(v[p]))
        pixels = pixels[::-1] if order == "descending" else pixels
        for fraction in FRACTIONS:
            changed = image.clone()
            for pixel in pixels[: round(fraction * SIDE * SIDE)]:
                changed[:, pixel // SIDE, pixel % SIDE] = own[:, pixel // SIDE, pixel % SIDE]
            found.append(forward(changed[None])[0].double().softmax(0))
    return torch.stack(found).view(len(images), len(FRACTIONS), -1)


def curve_of(order="ascending", **options):
    images = pictures()
    return perturbation_curve(
        maps(), images, network(), fill=zero_fill(images), order=order, **options
    )


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("kind", ["zero", "mean", "blur"])
@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_batches_give_what_one_pass_per_step_gives(order, kind, batch_size):
    images = pictures()
    images[:, :, :3] = 0  # a background, which is not evaluated again
    fill = {"zero": zero_fill, "mean": mean_fill, "blur": blur_fill}[kind](images)
    found = perturbation_curve(
        maps(), images, network(), fill=fill, order=order, batch_size=batch_size
    )
    expected = plainly(maps(), images, network(), fill.expand_as(images), order)
    torch.testing.assert_close(found.probabilities, expected, rtol=0, atol=1e-6)


def test_a_batch_equals_its_parts():
    images = pictures(4)
    whole = perturbation_curve(maps(4), images, network(), fill=NoisyLinearImputation())
    parts = [
        perturbation_curve(values[None], image[None], network(), fill=NoisyLinearImputation())
        for values, image in zip(maps(4), images, strict=True)
    ]
    found = torch.cat([part.probabilities for part in parts])
    torch.testing.assert_close(whole.probabilities, found, rtol=0, atol=1e-4)


def test_no_forward_pass_is_larger_than_the_batch_and_none_is_wasted():
    seen = []

    def forward(images):
        seen.append(len(images))
        return network()(images)

    images = pictures()
    images[:, :, :4] = 0
    ramp = torch.arange(SIDE * SIDE).float().view(1, SIDE, SIDE).expand(3, -1, -1)
    perturbation_curve(ramp, images, forward, fill=zero_fill(images), batch_size=5)
    assert max(seen) == 5
    # the half that is black changes nothing, and what is wholly black is asked once
    different = 1 + sum(0.5 < fraction < 1 for fraction in FRACTIONS)
    assert sum(seen) == 3 * different + 1
    seen.clear()
    black = torch.zeros_like(images)
    perturbation_curve(ramp, black, forward, fill=zero_fill(images))
    assert seen == [1]


def test_threads_change_nothing_but_the_time():
    cores = torch.get_num_threads()
    images = pictures()
    for fill in (zero_fill(images), NoisyLinearImputation()):
        one, several = (
            perturbation_curve(
                maps(), images, network(), fill=fill, batch_size=4, threads=threads
            ).probabilities
            for threads in (1, 3)
        )
        torch.testing.assert_close(several, one, rtol=0, atol=1e-6)
    assert torch.get_num_threads() == cores


def test_threads_share_the_work_each_on_one_core_and_hand_back_what_is_raised():
    cores = torch.get_num_threads()
    meeting = threading.Barrier(3, timeout=60)  # breaks unless three batches are under way at once
    seen = []

    def forward(images):
        if len(seen) < 3:
            seen.append((len(images), torch.get_num_threads()))
            meeting.wait()
        return network()(images)

    images = pictures()[:1]
    steps = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8)
    perturbation_curve(maps(1), images, forward, fill=zero_fill(images), fractions=steps, threads=3)
    assert seen == [(2, 1)] * 3  # six pictures

    def broken(images):
        raise RuntimeError("a broken network")

    with pytest.raises(RuntimeError, match="a broken network"):
        perturbation_curve(maps(), pictures(), broken, fill=zero_fill(images), threads=3)
    assert torch.get_num_threads() == cores


def test_what_shows_nothing_of_any_picture_is_imputed_and_asked_once():
    seen = []

    def forward(images):
        seen.append(len(images))
        return network()(images)

    curve = perturbation_curve(maps(), pictures(), forward, fill=NoisyLinearImputation())
    assert sum(seen) == 3 * (len(FRACTIONS) - 1) + 1
    last = perturbed(maps(), pictures(), fraction=1.0, fill=NoisyLinearImputation())
    expected = network()(last).double().softmax(1)
    torch.testing.assert_close(curve.probabilities[:, -1], expected)


def test_pixel_flipping_equals_quantus():
    golden = np.load(GOLDEN)
    steps = toy.SIDE**2
    images = torch.from_numpy(toy.toy_pictures()).float()
    for order in ("descending", "ascending"):
        found = perturbation_curve(
            torch.from_numpy(toy.toy_maps()),
            images,
            toy.toy_network(),
            fill=zero_fill(images),
            order=order,
            fractions=[step / steps for step in range(1, steps + 1)],
        )
        theirs = probability(found, torch.from_numpy(toy.toy_classes())).numpy()
        np.testing.assert_allclose(theirs, golden[order], rtol=0, atol=1e-6)


def test_imputation_equals_that_of_quantus():
    values = toy.toy_maps()[0]
    removed = torch.from_numpy(values < np.sort(values.ravel())[toy.SIDE**2 // 2])[None]
    images = torch.from_numpy(toy.toy_pictures()[:1])
    found = NoisyLinearImputation(noise=0.0, tolerance=1e-12)(images, removed)
    np.testing.assert_allclose(found[0].numpy(), np.load(GOLDEN)["imputed"], rtol=0, atol=1e-9)


def densely_imputed(image, removed):
    """The linear system written out pixel by pixel."""
    height, width = image.shape
    number = np.arange(height * width).reshape(height, width)
    matrix, side = np.eye(height * width), image.ravel().copy()
    for row, column in np.argwhere(removed):
        here, total = number[row, column], 0.0
        side[here] = 0
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                other = row + down, column + across
                if other == (row, column) or not (0 <= other[0] < height and 0 <= other[1] < width):
                    continue
                weight = 1 / 12 if down and across else 1 / 6
                matrix[here, number[other]] = -weight
                total += weight
        matrix[here, here] = total
    return np.linalg.solve(matrix, side).reshape(height, width)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("side", [7, 12])
@pytest.mark.parametrize("scattered", [True, False])
def test_imputation_solves_the_dense_system(share, side, scattered):
    images = torch.randn(2, 2, side, side + 1, generator=generator(), dtype=torch.float64)
    order = torch.rand(2, side, side + 1, generator=generator(1))
    if not scattered:
        order = torch.arange(side * (side + 1)).view(1, side, -1).expand(2, -1, -1).double()
    removed = order < order.flatten(1).quantile(share, dim=1)[:, None, None]
    found = NoisyLinearImputation(noise=0.0, tolerance=1e-12)(images, removed)
    for sample in range(2):
        for channel in range(2):
            expected = densely_imputed(images[sample, channel].numpy(), removed[sample].numpy())
            np.testing.assert_allclose(found[sample, channel].numpy(), expected, atol=1e-9)


def test_imputation_by_default_is_exact_far_below_its_noise():
    coarse = torch.randn(1, 1, 6, 6, generator=generator(), dtype=torch.float64)
    images = interpolate(coarse, size=(48, 48), mode="bicubic")
    removed = torch.ones(1, 48, 48, dtype=torch.bool)
    removed[:, :2] = False
    exact = NoisyLinearImputation(noise=0.0, tolerance=1e-12)(images, removed)
    found = NoisyLinearImputation(noise=0.0)(images.float(), removed)
    assert (found - exact).abs().max() < NoisyLinearImputation().noise / 10


def test_one_pixel_that_is_left_fills_a_large_hole():
    images = torch.full((1, 2, 33, 50), 3.0)
    images[:, 1] = -1
    removed = torch.ones(1, 33, 50, dtype=torch.bool)
    removed[0, 2, 47] = False
    found = NoisyLinearImputation(noise=0.0)(images, removed)
    torch.testing.assert_close(found, images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 9), (23, 1), (6, 41)])
def test_imputation_of_pictures_of_any_shape(shape):
    images = torch.randn(1, 1, *shape, generator=generator(), dtype=torch.float64)
    removed = torch.rand(1, *shape, generator=generator(1)) < 0.6
    found = NoisyLinearImputation(noise=0.0, tolerance=1e-12)(images, removed)
    expected = densely_imputed(images[0, 0].numpy(), removed[0].numpy())
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-9)


def test_a_solved_channel_does_not_see_its_neighbours_in_the_batch():
    images = torch.randn(3, 2, 24, 24, generator=generator())
    images[1] *= 100
    order = torch.rand(3, 24, 24, generator=generator(1))
    removed = order < torch.tensor([0.1, 0.95, 0.5])[:, None, None]
    together = NoisyLinearImputation()(images, removed)
    alone = [NoisyLinearImputation()(images[i : i + 1], removed[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_cycles_do_not_grow_with_the_picture():
    counts = []
    for side in (16, 32, 64, 128):
        removed = torch.ones(1, side, side, dtype=torch.bool)
        removed[:, :, 0] = False
        images = torch.randn(1, 1, side, side, generator=generator())
        least = next(n for n in range(1, 20) if is_solved(images, removed, n))
        counts.append(least)
    assert max(counts) <= 8


def is_solved(images, removed, iterations):
    try:
        NoisyLinearImputation(most_iterations=iterations)(images, removed)
    except MetricError:
        return False
    return True


def test_imputation_of_black_is_black_and_of_nothing_is_as_asked():
    images = torch.zeros(2, 1, 16, 16)
    images[:, :, 8:] = 1  # not beside the hole: what can be seen of it is black
    removed = torch.zeros(2, 16, 16, dtype=torch.bool)
    removed[0, :6], removed[1] = True, True
    found = NoisyLinearImputation(noise=0.0, unknown=0.25)(images, removed)
    torch.testing.assert_close(found[0], images[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], torch.full_like(found[1], 0.25))


def test_imputation_adds_noise_to_holes_only():
    images = torch.zeros(1, 1, 64, 64)
    removed = torch.zeros(1, 64, 64, dtype=torch.bool)
    removed[:, :32] = True
    found = NoisyLinearImputation(noise=0.5)(images, removed)
    assert found[:, :, :32].std().item() == pytest.approx(0.5, rel=0.1)
    assert found[:, :, 32:].abs().max() == 0
    again = NoisyLinearImputation(noise=0.5)(images, removed)
    torch.testing.assert_close(found, again, rtol=0, atol=0)
    other = NoisyLinearImputation(noise=0.5, seed=1)(images, removed)
    assert not torch.equal(found, other)


def test_imputation_that_is_not_solved_is_refused():
    removed = torch.ones(1, 16, 16, dtype=torch.bool)
    removed[:, 0, :2] = False
    with pytest.raises(MetricError, match="removed pixels were not solved for in 2 iterations"):
        NoisyLinearImputation(most_iterations=2)(torch.randn(1, 1, 16, 16), removed)


def test_ties_go_in_one_drawn_order():
    values = torch.zeros(2, 2, 2)
    values[:, 0] = 1
    ranks = removal_ranks(values, (8, 8), order="ascending", seed=3)
    assert torch.equal(ranks[0], ranks[1])
    assert torch.equal(ranks[0].flatten().sort().values, torch.arange(64, dtype=torch.int32))
    assert ranks[0, 4:].max() == 31  # the lesser cells go first, all of them
    rows = ranks[0, 4:].float().mean(1)
    assert (rows - 15.5).abs().max() < 12  # and not row by row, which gives 3.5 to 27.5
    assert not torch.equal(ranks, removal_ranks(values, (8, 8), order="ascending", seed=4))
    falling = removal_ranks(values, (8, 8), order="descending", seed=3)
    assert falling[0, :4].max() == 31


def test_a_rescaled_map_has_the_same_curve():
    images = pictures()
    one, other = (
        perturbation_curve(values, images, network(), fill=zero_fill(images)).probabilities
        for values in (maps(), torch.exp(3 * maps()) - 7)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_perturbed_pictures_are_those_of_the_curve():
    images = pictures()
    made = perturbed(maps(), images, fraction=0.3, fill=zero_fill(images))
    at = FRACTIONS.index(0.3)
    expected = curve_of().probabilities[:, at]
    torch.testing.assert_close(network()(made).double().softmax(1), expected)
    assert torch.equal(perturbed(maps(), images, fraction=0.0, fill=zero_fill(images)), images)


def test_fills_by_hand():
    images = torch.arange(16.0).view(2, 2, 2, 2)
    assert zero_fill(images).abs().sum() == 0
    mean = mean_fill(images)
    assert mean[0, :, 0, 0].tolist() == [5.5, 9.5]
    assert mean.shape == (1, 2, 2, 2)
    torch.testing.assert_close(
        blur_fill(torch.full((1, 1, 9, 9), 3.0)), torch.full((1, 1, 9, 9), 3.0)
    )
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    blurred = blur_fill(point, spread=0.05)
    deviation = 0.05 * 41
    ratio = torch.exp(torch.tensor(-1 / (2 * deviation**2)))
    torch.testing.assert_close(blurred[0, 0, 20, 21] / blurred[0, 0, 20, 20], ratio)
    assert blurred.sum().item() == pytest.approx(1)


def flat(order, probabilities, fractions=FRACTIONS):
    """A curve of one sample of class 0 with given probabilities."""
    found = torch.tensor(probabilities, dtype=torch.float64)
    return PerturbationCurve(
        fractions=torch.tensor(fractions, dtype=torch.float64),
        probabilities=torch.stack([found, 1 - found], 1)[None],
        order=order,
    )


def test_areas_equal_scikit_learn():
    classes = torch.tensor([0, 2, 1])
    for name, order in (("insertion", "ascending"), ("deletion", "descending")):
        curve = curve_of(order)
        heights = probability(curve, classes)
        expected = [auc(FRACTIONS, row) for row in heights.numpy()]
        np.testing.assert_allclose(score(name, curve, classes).per_sample, expected, atol=1e-12)


def test_a_constant_curve_has_its_height_and_no_loss():
    zero = torch.tensor([0])
    heights = [0.7] * len(FRACTIONS)
    rising, falling = flat("ascending", heights), flat("descending", heights)
    assert score("insertion", rising, zero).per_sample.item() == pytest.approx(0.7)
    assert score("deletion", falling, zero).per_sample.item() == pytest.approx(0.7)
    assert score("sufficiency", rising, zero).per_sample.item() == pytest.approx(0)
    assert score("comprehensiveness", falling, zero).per_sample.item() == pytest.approx(0)
    assert score("input_perturbation", rising, zero).per_sample.item() == pytest.approx(1)
    one = torch.tensor([1])
    assert score("input_perturbation_opposite", falling, one).per_sample.item() == 0


def test_losses_by_hand():
    fractions = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
    rising = flat("ascending", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3), fractions)
    # 1, 5, 10, 20 and 50 % are left
    expected = 0.9 - (0.4 + 0.5 + 0.6 + 0.7 + 0.8) / 5
    zero = torch.tensor([0])
    assert score("sufficiency", rising, zero).per_sample.item() == pytest.approx(expected)
    fractions = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
    falling = flat("descending", (0.9, 0.7, 0.5, 0.4, 0.3, 0.1), fractions)
    expected = 0.9 - (0.7 + 0.5 + 0.4 + 0.3 + 0.1) / 5
    assert score("comprehensiveness", falling, zero).per_sample.item() == pytest.approx(expected)


def test_balanced_area_is_the_area_under_balanced_accuracy():
    images = pictures(20)
    curve = perturbation_curve(maps(20), images, network(), fill=zero_fill(images))
    labels = torch.tensor([0] * 12 + [2] * 8)  # class 1 is never seen
    hits = right(curve, labels)
    accuracies = [
        balanced_accuracy_score(labels, curve.probabilities[:, place].argmax(1))
        for place in range(len(FRACTIONS))
        if set(curve.probabilities[:, place].argmax(1).tolist()) <= {0, 2}
    ]
    found = balanced_mean(hits.double(), labels)
    known = [
        value
        for place, value in enumerate(found.tolist())
        if set(curve.probabilities[:, place].argmax(1).tolist()) <= {0, 2}
    ]
    assert known == pytest.approx(accuracies)
    per_sample = score("input_perturbation", curve, labels).per_sample
    area = balanced_mean(per_sample, labels).item()
    assert area == pytest.approx(auc(FRACTIONS, found.numpy()))
    assert chance(labels) == 0.5


def test_weights_are_repetitions():
    labels = torch.tensor([0, 0, 1, 2])
    values = torch.tensor([1.0, 0.0, 0.5, 0.25], dtype=torch.float64)
    weights = torch.tensor([2.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    drawn = torch.tensor([0, 0, 1, 2, 2, 2])
    found = balanced_mean(values, labels, weights=weights)
    torch.testing.assert_close(found, balanced_mean(values[drawn], labels[drawn]))
    assert found.item() == pytest.approx((2 / 3 + 0.5) / 2)
    assert balanced_mean(values, labels, weights=0 * weights).isnan()


def test_sigmoid_curves_have_probabilities_and_no_right_class():
    images = pictures()
    curve = perturbation_curve(maps(), images, network(), fill=zero_fill(images), exclusive=False)
    expected = network()(images).double().sigmoid()
    torch.testing.assert_close(curve.probabilities[:, 0], expected)
    with pytest.raises(MetricError, match="several classes may hold at once"):
        right(curve, torch.tensor([0, 1, 2]))


def test_several_faithfulness_metrics_take_one_curve():
    labels = torch.tensor([0, 1, 2])
    found = scores(("insertion", "sufficiency", "input_perturbation"), curve_of(), labels)
    assert [each.higher_is_better for each in found] == [True, False, True]
    assert {each.category for each in found} == {"faithfulness"}
    expected = faith.insertion(curve_of(), labels)
    torch.testing.assert_close(found[0].per_sample, expected)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("insertion", "descending"),
        ("deletion", "ascending"),
        ("sufficiency", "descending"),
        ("comprehensiveness", "ascending"),
        ("input_perturbation", "descending"),
        ("input_perturbation_opposite", "ascending"),
    ],
)
def test_curves_of_the_other_order_are_refused(name, order):
    with pytest.raises(MetricError, match=f"the curve removes pixels in {order} order"):
        score(name, curve_of(order), torch.tensor([0, 1, 2]))


def test_curves_that_lack_points_are_refused():
    part = flat("ascending", (0.9, 0.1), (0.0, 0.9))
    with pytest.raises(MetricError, match=r"the curve goes from 0 to 0\.9; an area is taken"):
        score("insertion", part, torch.tensor([0]))
    with pytest.raises(MetricError, match=r"no point where 0\.99 of the pixels are removed"):
        score("sufficiency", part, torch.tensor([0]))


@pytest.mark.parametrize("label", [-1, 3])
def test_classes_that_do_not_exist_are_refused(label):
    labels = torch.tensor([0, 1, label])
    with pytest.raises(MetricError, match=r"classes go from .* and the network knows 0 to 2"):
        score("insertion", curve_of(), labels)
    with pytest.raises(MetricError, match="classes go from"):
        right(curve_of(), labels)


def test_no_label_is_refused():
    with pytest.raises(MetricError, match="no label, so no class to guess"):
        chance(torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_maps_and_pictures_that_are_not_finite_are_refused(bad):
    values, images = maps(), pictures()
    with pytest.raises(MetricError, match="a map or picture holds NaN or an infinite value"):
        perturbation_curve(values * bad, images, network(), fill=zero_fill(images))
    with pytest.raises(MetricError, match="a map or picture holds NaN or an infinite value"):
        perturbation_curve(values, images * bad, network(), fill=zero_fill(images))


def test_what_cannot_be_perturbed_is_refused():
    images, fill = pictures(), zero_fill(pictures())
    with pytest.raises(ShapeError, match="2 maps for 3 pictures"):
        perturbed(maps(2), images, fraction=0.5, fill=fill)
    with pytest.raises(ShapeError, match="0 maps for 0 pictures"):
        perturbed(maps(3)[:0], images[:0], fraction=0.5, fill=fill)
    with pytest.raises(MetricError, match="the map has 16 x 16 cells and the picture only 8 x 8"):
        perturbed(maps(3, 16), images, fraction=0.5, fill=fill)
    for fractions in ((), (0.5, 0.5), (0.5, 0.1), (-0.1, 1.0), (0.0, 1.5)):
        with pytest.raises(MetricError, match=r"fractions are .*; they ascend from 0 to 1"):
            perturbation_curve(maps(), images, network(), fill=fill, fractions=fractions)
    with pytest.raises(MetricError, match="batch size is 0; a batch has a picture"):
        perturbation_curve(maps(), images, network(), fill=fill, batch_size=0)
    with pytest.raises(MetricError, match="threads is 0; one at least does the work"):
        perturbation_curve(maps(), images, network(), fill=fill, threads=0)


def test_networks_that_do_not_answer_are_refused():
    images = pictures()
    for answer in (lambda x: x, lambda x: torch.zeros(1, 3)):
        with pytest.raises(ShapeError, match="it must give one row of logits for each"):
            perturbation_curve(maps(), images, answer, fill=zero_fill(images), batch_size=9)
    with pytest.raises(MetricError, match="the network gave NaN or an infinite logit"):
        perturbation_curve(
            maps(), images, lambda x: network()(x) * torch.nan, fill=zero_fill(images)
        )


def test_fills_that_mean_nothing_are_refused():
    with pytest.raises(MetricError, match="the mean of no pictures is not defined"):
        mean_fill(pictures()[:0])
    with pytest.raises(MetricError, match=r"spread is 0\.0; a bell has a positive width"):
        blur_fill(pictures(), spread=0.0)
