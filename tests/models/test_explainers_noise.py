"""Noise is the same however it is batched, and no more of it is held than a batch needs."""

import torch

from models.explainers import MoreauGrad, smoothed
from models.explainers.noise import noisy_copies, ranges, seeded_noise
from tests.models.explainer_cases import TARGET, Soft, images


def test_copies_are_points_and_scaled_noise_draw_by_draw():
    points = images(3, side=4)
    scale = ranges(points)
    noise = list(seeded_noise(5, points, 7))
    for size in (1, 4, 100):
        copies = noisy_copies(points, iter(noise), draws=5, scale=scale, batch_size=size)
        seen = []
        for draws, samples, noisy in copies:
            assert len(noisy) <= size
            for draw, sample, copy in zip(draws.tolist(), samples.tolist(), noisy, strict=True):
                assert torch.equal(copy, points[sample] + scale[sample] * noise[draw])
                seen.append((draw, sample))
        assert seen == [(draw, sample) for draw in range(5) for sample in range(3)]


def test_noise_is_drawn_when_it_is_needed():
    drawn = []

    def noise():
        for number, picture in enumerate(seeded_noise(100, images(1), 0)):
            drawn.append(number)
            yield picture

    points = images(3)
    copies = noisy_copies(points, noise(), draws=100, scale=ranges(points), batch_size=4)
    next(copies)
    assert drawn == [0, 1]
    next(copies)
    assert drawn == [0, 1, 2]


def test_noise_that_is_not_kept_is_drawn_again_and_the_same(monkeypatch):
    model, x = Soft(), images(2, side=3)[:, :1].double()
    settings = MoreauGrad(draws=6, batch_size=5, rho=0.2)
    (kept,) = settings(model, x, TARGET[:2] // 2)
    monkeypatch.setattr(smoothed, "KEPT_NOISE", 5)
    (again,) = settings(model, x, TARGET[:2] // 2)
    assert torch.equal(kept.values, again.values)
    (other,) = MoreauGrad(draws=6, batch_size=5, rho=0.2, seed=1)(model, x, TARGET[:2] // 2)
    assert not torch.equal(kept.values, other.values)


def test_noise_has_the_range_of_each_picture():
    x = images(2, side=4)
    x[1] *= 10
    expected = torch.stack([picture.max() - picture.min() for picture in x])
    assert torch.equal(ranges(x).flatten(), expected)
