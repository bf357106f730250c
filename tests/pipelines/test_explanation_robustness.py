"""Explanations of a run under attack: rows that can be recomputed, and the figure of them."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.explainers import AttentionMaps, GradCam, MoreauGrad, Occlusion, SimpleGradient
from models.metrics.similarity import top_k_intersection
from models.networks import build
from pipelines import explanation_robustness
from pipelines.config import RunConfig
from pipelines.errors import UsageError
from pipelines.explanation_robustness import (
    IMPOSSIBLE,
    NOT_FOUND,
    ONE_CELL,
    WITHOUT_DERIVATIVE,
    RobustnessRow,
    as_records,
    robustness_rows,
    worst_attacks,
)
from pipelines.feed import normalise, pictures
from pipelines.robustness_figure import mean_curve, robustness_figure
from preprocessing.shards import open_dataset

METHODS = {"gradient": SimpleGradient(), "attention": AttentionMaps()}
SAMPLES = (0, 3)


@pytest.fixture(scope="module")
def config():
    return RunConfig.of(
        {
            "data": {
                "name": "blobs",
                "classes": ("normal", "mild", "severe"),
                "in_channels": 1,
                "picture_size": (32, 32),
            },
            "normalisation": {"mean": (40.0,), "sd": (50.0,)},
            "train": {"network": "resnet10-narrow", "variant": "exact"},
        }
    )


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("resnet10-narrow", variant="exact", in_channels=1, classes=3, image_size=32)


@pytest.fixture(scope="module")
def scans(make_blobs):
    data = open_dataset(make_blobs(counts={"train": 2, "test": 4}, size=32))
    return pictures(data.split("test"), (32, 32), labelled=False)


@pytest.fixture(scope="module")
def rows(network, config, scans):
    return robustness_rows(
        network,
        config,
        scans,
        methods=METHODS,
        samples=SAMPLES,
        generator=torch.Generator().manual_seed(0),
        radii=(0.2,),
    )


def some(network, config, scans, **given):
    settings = {"methods": METHODS, "samples": SAMPLES, "radii": (0.1,), "attacks": ("noise",)}
    generator = torch.Generator().manual_seed(given.pop("seed", 0))
    return robustness_rows(network, config, scans, generator=generator, **{**settings, **given})


def test_there_is_a_row_for_each_sample_map_radius_and_attack(rows):
    keys = {(row.sample, row.method, row.radius, row.attack) for row in rows}
    maps = {"gradient", "attention-fine", "attention-coarse"}
    attacks = {"top-k", "transfer", "noise"}
    assert keys == {
        (sample, method, 0.2, attack) for sample in SAMPLES for method in maps for attack in attacks
    }
    assert len(rows) == len(keys)


def test_radius_zero_leaves_every_map_as_it_is(network, config, scans):
    still = some(network, config, scans, radii=(0.0,), attacks=("search", "noise"))
    assert len(still) == 12
    for row in still:
        assert row.top_k_intersection == pytest.approx(1)
        assert row.structural_similarity == pytest.approx(1)
        assert row.cosine == pytest.approx(1)
        assert row.normalised_distance == 0
        assert (row.change, row.confidence_change) == (0, 0)
        assert row.note in ("", ONE_CELL)
        assert row.preserved


def test_changes_stay_within_their_radius_and_are_made(rows):
    for row in rows:
        assert row.change <= row.radius * (1 + 1e-5)
        assert row.preserved == (IMPOSSIBLE not in row.note)
        assert row.change > 0 or row.note
        assert (row.method == "attention-coarse") == (row.note == ONE_CELL)
    assert any(row.change > 0.5 * row.radius > 0 for row in rows)


def test_gradients_give_way_more_to_an_attack_than_to_noise(rows):
    def mean(attack):
        found = [
            row.top_k_intersection
            for row in rows
            if (row.method, row.radius, row.attack) == ("gradient", 0.2, attack)
        ]
        return sum(found) / len(found)

    assert mean("top-k") < mean("noise") - 0.02


def test_noise_is_measured_on_stored_bytes_as_they_are_normalised(network, config, scans):
    """Recomputed by hand: noise of the seed, clamped to 0 and 255 after normalisation."""
    (row,) = some(network, config, scans, methods={"gradient": SimpleGradient()}, samples=(2,))
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(0)))
    image = normalise(scans[2][None], config.normalisation)
    noise = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(seed))
    noise = 0.1 * math.sqrt(noise.numel()) * noise / noise.norm()
    changed = (image + noise).clamp((0 - 40) / 50, (255 - 40) / 50)
    target = network.eval()(image).logits.argmax(1)
    maps = [SimpleGradient()(network, x, target)[0].values for x in (image, changed)]
    assert row.top_k_intersection == pytest.approx(float(top_k_intersection(*maps)), abs=1e-3)
    assert row.change == pytest.approx(float((changed - image).square().mean().sqrt()), rel=1e-4)
    odds = [network(x).logits.double().softmax(1)[0, target[0]] for x in (image, changed)]
    assert row.confidence_change == pytest.approx(float((odds[1] - odds[0]).detach()), abs=1e-5)
    network.train()


def test_rows_do_not_depend_on_the_batch_and_repeat(network, config, scans, monkeypatch):
    whole = some(network, config, scans)
    assert some(network, config, scans) == whole
    assert some(network, config, scans, seed=1) != whole
    monkeypatch.setattr(explanation_robustness, "BATCH_SIZE", 2)
    parts = some(network, config, scans)
    by_key = {(row.sample, row.method): row for row in parts}
    assert len(parts) == len(whole)
    for row in whole:
        part = by_key[row.sample, row.method]
        assert part.cosine == pytest.approx(row.cosine, abs=1e-4)
        assert part.change == pytest.approx(row.change, rel=1e-5)


def test_methods_without_a_derivative_are_searched_and_the_row_says_so(network, config, scans):
    found = some(
        network,
        config,
        scans,
        methods={"occlusion": Occlusion(cells=3)},
        samples=(1,),
        attacks=("top-k", "noise"),
    )
    assert [row.attack for row in found] == ["search", "noise"]
    assert WITHOUT_DERIVATIVE in found[0].note
    assert found[1].note == ""


class Touchy(nn.Module):
    """Says another class of whatever it has not seen."""

    def __init__(self, known):
        super().__init__()
        self.known, self.weight = known, nn.Parameter(torch.ones(1))

    def forward(self, images):
        score = (images.square().sum((1, 2, 3)) * self.weight)[:, None]
        far = (images.detach()[:, None] - self.known).flatten(2).norm(dim=2).amin(1) - 1e-3
        return torch.cat([score, score + far[:, None]], dim=1)


def test_pictures_that_cannot_be_changed_are_noted(config, scans):
    known = torch.stack([normalise(scans[i][None], config.normalisation)[0] for i in SAMPLES])
    found = some(Touchy(known), config, scans, methods={"gradient": SimpleGradient()})
    assert [(row.preserved, row.note, row.change) for row in found] == 2 * [
        (False, IMPOSSIBLE, 0.0)
    ]


def test_maps_that_nothing_moves_are_noted(config, scans):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 3))
    found = some(linear, config, scans, methods={"gradient": SimpleGradient()}, attacks=("top-k",))
    assert {row.note for row in found} == {NOT_FOUND}
    assert [row.top_k_intersection for row in found] == pytest.approx([1, 1])


def test_of_label_sets_every_answer_stays(network, config, scans):
    several = replace_task(config, "multi-label")
    found = some(network, several, scans, methods={"gradcam": GradCam(layer="block2")})
    assert [row.method for row in found] == ["gradcam"] * 2
    assert all(-1 <= row.confidence_change <= 1 for row in found)


def replace_task(config, task):
    return config.model_copy(update={"data": config.data.model_copy(update={"task": task})})


def test_pictures_that_are_no_bytes_stay_between_their_own_extremes(network, config):
    class Scores:
        def __getitem__(self, index):
            generator = torch.Generator().manual_seed(index)
            return torch.randn(1, 32, 32, generator=generator)

    raw = Scores()[0][None]
    low, high = explanation_robustness._range_of(raw)
    assert (float(low), float(high)) == (float(raw.min()), float(raw.max()))
    low, high = explanation_robustness._range_of((raw.clamp(0, 1) * 9).to(torch.uint8))
    assert (float(low), float(high)) == (0, 255)


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({"attacks": ("top-kk",)}, "UNKNOWN_ATTACK", "no attack 'top-kk'; did you mean 'top-k'"),
        ({"samples": ()}, "NOTHING_TO_ATTACK", "no samples: give one or more"),
        ({"methods": {}, "radii": ()}, "NOTHING_TO_ATTACK", "no methods and no radii"),
        ({"radii": (-1.0,)}, "BAD_RADIUS", "gradient: radius is -32.0; the length of a change"),
        (
            {"methods": {"gradcam": GradCam(layer="block9")}},
            "UNKNOWN_LAYER",
            "gradcam: no layer 'block9'; did you mean",
        ),
    ],
)
def test_what_cannot_be_attacked_is_refused(network, config, scans, given, code, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        some(network, config, scans, **given)
    assert caught.value.code == code


def test_a_network_of_other_pictures_is_refused(config, scans):
    other = build("resnet10-narrow", variant="baseline", in_channels=2, classes=3, image_size=32)
    with pytest.raises(UsageError, match="network was built for 2 x 32 x 32"):
        some(other, config, scans)


def test_the_network_comes_back_as_it_was(config, scans):
    torch.manual_seed(0)
    network = build("resnet10-narrow", variant="exact", in_channels=1, classes=3, image_size=32)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    some(network, config, scans, methods={"m": MoreauGrad(draws=2, most_steps=2)}, samples=(0,))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def row_of(**given):
    settings = {
        "sample": 0,
        "method": "gradient",
        "radius": 0.1,
        "attack": "top-k",
        "top_k_intersection": 0.5,
        "normalised_distance": 0.4,
        "structural_similarity": 0.3,
        "cosine": 0.2,
        "preserved": True,
        "change": 0.1,
        "confidence_change": 0.0,
    }
    return RobustnessRow(**{**settings, **given})


def test_the_worst_attack_of_each_map_is_kept_and_noise_is_none():
    rows = [
        row_of(attack="noise", top_k_intersection=0.1),
        row_of(attack="top-k", top_k_intersection=math.nan),
        row_of(attack="transfer", top_k_intersection=0.6),
        row_of(attack="search", top_k_intersection=0.6),
        row_of(sample=1, attack="top-k"),
    ]
    assert worst_attacks(rows) == [rows[2], rows[4]]


def test_records_leave_out_what_is_no_number():
    (record,) = as_records([row_of(cosine=math.nan)])
    assert record["cosine"] == ""
    assert record["preserved"] is True
    assert list(record)[:4] == ["sample", "method", "radius", "attack"]


def test_curves_are_means_over_the_pictures_that_have_a_value():
    rows = [row_of(radius=radius, sample=i, cosine=radius * i) for radius in (0.3, 0.1)
            for i in range(3)]  # fmt: skip
    rows.append(replace(rows[0], cosine=math.nan))
    radii, means = mean_curve(rows, "cosine")
    assert radii.tolist() == [0.1, 0.3]
    assert means.tolist() == pytest.approx([0.1, 0.3])
    _, none = mean_curve([row_of(cosine=math.nan)], "cosine")
    assert math.isnan(none[0])


def test_the_figure_names_every_method_and_panel_and_repeats(rows):
    figure = robustness_figure(rows)
    assert figure["png"].startswith(b"\x89PNG")
    svg = figure["svg"].decode()
    for word in ("gradient", "attention-fine", "attention-coarse", "noise", "Top-k intersection",
                 "Normalised distance", "SSIM", "radius"):  # fmt: skip
        assert word in svg
    assert ">0.2<" in svg  # the radius itself
    assert "mathdefault" not in svg
    assert robustness_figure(rows) == figure


def test_a_figure_needs_a_positive_radius():
    with pytest.raises(ValueError, match="no attack at a positive radius to draw"):
        robustness_figure([row_of(radius=0.0)])
