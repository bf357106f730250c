"""Random weights, random maps, repetition: who shows the model and who shows the picture."""

from dataclasses import dataclass

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from models.errors import ExplainerError
from models.explainers import (
    EXPLAINERS,
    AttentionMaps,
    DeepLift,
    Explainer,
    GradCam,
    Occlusion,
    SimpleGradient,
    SmoothGrad,
)
from models.explainers.randomise import randomised
from models.explainers.randomise_similarity import rank_correlation
from models.explainers.verify import verify
from models.records import Attribution, Verdict
from tests.models.explainer_cases import Linear, assert_as_found, classifier, images, snapshot

TARGET = torch.tensor([0, 2, 1, 0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    return classifier("exact", side=64)


def pictures():
    return images(4, side=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges(Explainer):
    """Differences of neighbouring pixels, times the score: a map that knows no model."""

    @property
    def name(self):
        return "edges"

    def explain(self, model, images, target):
        across = images.sum(1) - images.sum(1).roll(1, 2)
        values = across * model(images).logits.sum(1).detach()[:, None, None]
        return (Attribution(values=values, target=target, method=self.name, signed=True),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrepeatable(Explainer):
    """The gradient and fresh noise of half its size."""

    @property
    def name(self):
        return "unrepeatable"

    def explain(self, model, images, target):
        values = SimpleGradient()(model, images, target)[0].values
        values = values + 0.5 * values.std() * torch.randn(values.shape)
        return (Attribution(values=values, target=target, method=self.name, signed=True),)


def test_an_edge_detector_is_refused(model):
    found = verify(Edges(), model, pictures(), TARGET, generator=generator())
    assert found.randomised_similarity == pytest.approx(1.0)
    assert found.random_similarity < 0.1
    assert found.structural_similarity == pytest.approx(1.0)
    assert found.random_structural_similarity < 0.5
    assert found.verdict == "refused"
    assert "randomisation: 1e+02 % rank correlation" in found.reason
    assert "the map shows the picture more than the model: see 'gradient'" in found.reason
    assert (found.method, found.law_residual, found.repeat_difference) == ("edges", None, 0.0)


@pytest.mark.parametrize("explainer", [SimpleGradient(), DeepLift(), GradCam(layer="block2")])
def test_methods_that_show_the_model_pass(model, explainer):
    found = verify(explainer, model, pictures(), TARGET, generator=generator(), rounds=2)
    assert found.verdict == "sound"
    assert found.randomised_similarity < 0.5
    assert found.repeat_difference <= 1e-3
    residual = explainer(model, pictures(), TARGET)[0].residual
    expected = None if residual is None else pytest.approx(float(residual.sort().values[2]))
    assert found.law_residual == expected
    assert f"{100 * found.random_similarity:.2g} % by chance" in found.reason


def test_levels_are_judged_together_and_measurements_have_no_residual(model):
    found = verify(AttentionMaps(), model, pictures(), TARGET, generator=generator())
    assert found.method == "attention"
    assert found.law_residual < 1e-5
    assert found.reason.count("repetition: ") == 1
    found = verify(Occlusion(cells=4), model, pictures(), TARGET, generator=generator(), rounds=1)
    assert found.law_residual is None
    assert "measured: each cell is" in found.reason


def test_maps_that_nothing_gates_are_refused():
    """Gates at their initialisation: all maps are uniform, whatever the weights."""
    torch.manual_seed(0)
    plain = classifier("exact", side=64)
    for gate in plain.attention.gates.values():
        nn.init.zeros_(gate.potential.weight)
    found = verify(AttentionMaps(), plain, pictures(), TARGET, generator=generator(), rounds=1)
    assert found.randomised_similarity == 1.0
    assert found.verdict == "refused"


def test_the_law_of_the_method_counts():
    """Gradient x input is not complete with biases."""
    model = classifier("baseline", side=64)
    explainer = EXPLAINERS["gradient-x-input"]
    found = verify(explainer, model, pictures(), TARGET, generator=generator(), rounds=1)
    assert found.law_residual > 1e-3
    assert found.verdict == "doubtful"
    assert "completeness: " in found.reason


def test_noise_is_drawn_anew_for_repetition():
    model, x = classifier("baseline"), images(4)
    few = verify(SmoothGrad(draws=2), model, x, TARGET, generator=generator(), rounds=1)
    many = verify(SmoothGrad(draws=64), model, x, TARGET, generator=generator(), rounds=1)
    assert 0 < many.repeat_difference < few.repeat_difference / 2
    assert few.verdict != "sound"
    assert "change of the map with other noise; raise draws" in few.reason


def test_a_method_that_should_repeat_and_does_not_is_doubted(model):
    found = verify(Unrepeatable(), model, pictures(), TARGET, generator=generator(), rounds=1)
    assert found.repeat_difference > 0.1
    assert found.verdict == "doubtful"
    assert "when it is asked for again; the model is random in evaluation" in found.reason


def test_the_same_generator_gives_the_same_verification(model):
    def once(seed):
        return verify(SimpleGradient(), model, pictures(), TARGET, generator=generator(seed))

    assert once(3) == once(3)
    assert once(3).randomised_similarity != once(4).randomised_similarity


def test_the_model_is_given_back_as_found_also_when_it_raises(model):
    model.train()
    model(pictures()).logits.sum().backward()
    before = snapshot(model)
    verify(SimpleGradient(), model, pictures(), TARGET, generator=generator(), rounds=1)
    assert_as_found(model, before)
    head = model.head.weight.clone()

    def fail(*_):
        if not torch.equal(model.head.weight, head):
            raise RuntimeError("with random weights")

    handle = model.head.register_forward_hook(fail)
    with pytest.raises(ExplainerError, match="with random weights"):
        verify(SimpleGradient(), model, pictures(), TARGET, generator=generator())
    handle.remove()
    assert_as_found(model, before)
    model.zero_grad()
    model.eval()


def test_random_weights_have_the_size_of_the_models_and_nothing_of_it():
    model = classifier("baseline")
    own = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.inference_mode(), randomised(model, generator=generator()):
        for name, weight in model.named_parameters():
            assert weight.shape == own[name].shape
            if weight.ndim < 2:
                assert torch.equal(weight.sort().values, own[name].sort().values)
            elif weight.numel() > 2000:
                ratio = weight.square().mean().sqrt() / own[name].square().mean().sqrt()
                assert abs(float(ratio) - 1) < 0.1
                both = torch.stack([weight.flatten(), own[name].flatten()])
                assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1
    for name, weight in model.named_parameters():
        assert torch.equal(weight, own[name])


def test_rank_correlation_is_scipys():
    one, other = (images(3, seed=seed, side=5)[:, 0] for seed in (1, 2))
    other[1] = other[1].round()  # ties
    other[2] = -one[2].exp()
    found = rank_correlation(one, other)
    for i in range(3):
        expected = spearmanr(one[i].flatten(), other[i].flatten()).statistic
        assert float(found[i]) == pytest.approx(float(expected), abs=1e-9)
    constant = torch.ones_like(one)
    assert rank_correlation(constant, one).tolist() == [0.0] * 3
    assert rank_correlation(constant, 2 * constant).tolist() == [1.0] * 3


def test_small_pictures_have_no_structural_similarity():
    x = images(4, side=6)
    found = verify(SimpleGradient(), Linear(classes=3), x, TARGET, generator=generator(), rounds=1)
    assert str(found.structural_similarity) == str(found.random_structural_similarity) == "nan"
    assert found.randomised_similarity < 1


def test_no_rounds_are_refused():
    x = images(4, side=6)
    with pytest.raises(ExplainerError, match="rounds is 0; it must be 1 or more"):
        verify(SimpleGradient(), Linear(classes=3), x, TARGET, generator=generator(), rounds=0)


def test_a_refused_map_in_the_middle_refuses_the_method(model):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Refused(Explainer):
        @property
        def name(self):
            return "refused"

        def explain(self, model, images, target):
            (found,) = SimpleGradient()(model, images, target)
            words = ("sound", "refused", "refused", "refused")
            verdicts = tuple(Verdict(word=word, reason=word) for word in words)
            return (
                Attribution(
                    values=found.values,
                    target=target,
                    method=self.name,
                    signed=True,
                    verdicts=verdicts,
                ),
            )

    found = verify(Refused(), model, pictures(), TARGET, generator=generator(), rounds=1)
    assert found.verdict == "refused"
    assert found.reason.endswith("refused")
