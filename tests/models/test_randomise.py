"""Weights drawn anew from the logits down: who loses its map, who keeps it, and what stays."""

from dataclasses import dataclass

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from models.errors import ExplainerError
from models.explainers import AttentionMaps, Explainer, GradCam, SimpleGradient
from models.explainers.randomise import UNNAMED, randomised, stages_from_logits
from models.explainers.randomise_cascade import UNTOUCHED, cascade
from models.explainers.randomise_similarity import likeness
from models.metrics import edge_map, structural_similarity
from models.records import Attribution
from tests.models.explainer_cases import (
    Functional,
    assert_as_found,
    classifier,
    images,
    snapshot,
)

TARGET = torch.tensor([0, 2, 1])
FROM_LOGITS = ["head", "attention", "block4", "block3", "block2", "block1", "stem"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    return classifier("exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges(Explainer):
    """A map that knows no model."""

    @property
    def name(self):
        return "edges"

    def explain(self, model, images, target):
        values = edge_map(images)
        return (Attribution(values=values, target=target, method=self.name, signed=False),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flipping(Explainer):
    """Edges with the sign of one weight of the head."""

    @property
    def name(self):
        return "flipping"

    def explain(self, model, images, target):
        values = edge_map(images) * model.head.weight.detach().flatten()[0].sign()
        return (Attribution(values=values, target=target, method=self.name, signed=True),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording(Explainer):
    """Keeps the weights that it is called with; the first map of the second call is NaN."""

    seen: list

    @property
    def name(self):
        return "recording"

    def explain(self, model, images, target):
        self.seen.append({key: value.clone() for key, value in model.named_parameters()})
        values = images.sum(1)
        if len(self.seen) == 2:
            values[0, 0, 0] = torch.nan
        return (Attribution(values=values, target=target, method=self.name, signed=False),)


class TestStages:
    def test_they_go_from_the_logits_down_and_hold_every_parameter_once(self, model):
        stages = stages_from_logits(model)
        assert list(stages) == FROM_LOGITS
        held = [id(weight) for weights in stages.values() for weight in weights]
        assert sorted(held) == sorted(id(weight) for weight in model.parameters())

    def test_a_baseline_has_no_stage_without_weights(self):
        assert list(stages_from_logits(classifier("baseline"))) == ["head", *FROM_LOGITS[2:]]

    def test_of_another_module_the_children_are_the_stages(self):
        other = Functional()
        other.own = nn.Parameter(torch.ones(3))
        stages = stages_from_logits(other)
        assert list(stages) == ["head", "gate", "more", "norm", "conv", UNNAMED]
        assert stages[UNNAMED] == (other.own,)

    def test_a_shared_weight_belongs_to_the_first_stage_that_has_it(self):
        shared = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        shared[2].weight = shared[0].weight
        sizes = {name: len(weights) for name, weights in stages_from_logits(shared).items()}
        assert sizes == {"2": 2, "0": 1}


class TestCascade:
    def test_each_step_draws_one_stage_more_and_leaves_the_others(self, model):
        seen = []
        cascade(Recording(seen=seen), model, images(), TARGET, generator=generator())
        own = {name: weight.detach() for name, weight in model.named_parameters()}
        stages = stages_from_logits(model)
        assert len(seen) == 1 + len(stages)
        drawn = set()
        for step, weights in enumerate(stages.values(), start=1):
            drawn |= {id(weight) for weight in weights}
            for name, weight in model.named_parameters():
                same = torch.equal(seen[step][name], own[name])
                assert same == (id(weight) not in drawn) or weight.ndim < 2
                if step > 1 and id(weight) not in {id(each) for each in weights}:
                    assert torch.equal(seen[step][name], seen[step - 1][name])

    def test_a_map_that_ignores_the_model_stays_at_one(self, model):
        steps = cascade(Edges(), model, images(), TARGET, generator=generator())
        assert [step.stage for step in steps] == [UNTOUCHED, *FROM_LOGITS]
        assert [step.step for step in steps] == list(range(8))
        for step in steps:
            assert list(step.means().values()) == pytest.approx([1.0, 1.0, 1.0])

    def test_attention_at_random_weights_falls(self):
        model = classifier("exact", side=96)
        steps = cascade(AttentionMaps(), model, images(side=96), TARGET, generator=generator())
        fine = [step.means() for step in steps if step.method == "attention-fine"]
        assert len(steps) == 2 * len(fine)
        assert list(fine[0].values()) == pytest.approx([1.0, 1.0, 1.0])
        assert fine[1]["rank_correlation"] == pytest.approx(1.0)  # the head gates nothing
        assert max(abs(value) for value in fine[-1].values()) < 0.5

    @pytest.mark.parametrize("explainer", [SimpleGradient(), GradCam(layer="block2")])
    def test_maps_of_the_model_fall(self, model, explainer):
        steps = cascade(explainer, model, images(), TARGET, generator=generator())
        assert steps[0].means()["rank_correlation"] == pytest.approx(1.0)
        assert abs(steps[-1].means()["rank_correlation"]) < 0.5
        assert steps[-1].means()["structural_similarity"] < 0.7

    def test_the_sign_alone_does_not_count_as_magnitude(self, model):
        seed = next(s for s in range(9) if _first_weight_flips(model, s))
        steps = cascade(Flipping(), model, images(), TARGET, generator=generator(seed))
        found = steps[1].means()
        assert found["rank_correlation"] == pytest.approx(-1.0)
        assert found["magnitude_rank_correlation"] == pytest.approx(1.0)

    def test_the_last_step_is_a_model_with_all_weights_drawn(self, model):
        seen, whole = [], []
        cascade(Recording(seen=seen), model, images(), TARGET, generator=generator())
        with randomised(model, generator=generator(1)):
            Recording(seen=whole)(model, images(), TARGET)
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            for drawn in (seen[-1][name], whole[0][name]):
                assert not torch.isclose(drawn, weight).all()

    def test_the_same_generator_gives_the_same_cascade(self, model):
        def once(seed):
            steps = cascade(SimpleGradient(), model, images(), TARGET, generator=generator(seed))
            return [step.means() for step in steps]

        assert once(3) == once(3)
        assert once(3) != once(4)

    def test_the_model_is_given_back_as_found_also_when_it_raises(self, model):
        before = snapshot(model)
        cascade(SimpleGradient(), model, images(), TARGET, generator=generator())
        assert_as_found(model, before)
        block = model.trunk.block4.state_dict()
        block = {name: value.clone() for name, value in block.items()}

        def fail(*_):
            found = model.trunk.block4.state_dict()
            if not all(torch.equal(found[name], block[name]) for name in block):
                raise RuntimeError("in the middle of the cascade")

        handle = model.head.register_forward_hook(fail)
        with pytest.raises(ExplainerError, match="in the middle of the cascade"):
            cascade(SimpleGradient(), model, images(), TARGET, generator=generator())
        handle.remove()
        assert_as_found(model, before)

    def test_a_map_that_is_not_finite_is_compared_with_nothing(self, model):
        steps = cascade(Recording(seen=[]), model, images(), TARGET, generator=generator())
        assert steps[1].likeness.ranks.isnan().tolist() == [True, False, False]
        assert steps[1].likeness.structure.isnan().tolist() == [True, False, False]
        assert steps[1].means()["rank_correlation"] == pytest.approx(1.0)


def _first_weight_flips(model, seed):
    own = model.head.weight.detach().flatten()[0].sign()
    drawn = torch.randn(model.head.weight.shape, generator=generator(seed)).flatten()[0].sign()
    return bool(own != drawn)


class TestLikeness:
    def test_it_is_scipys_and_the_metrics(self):
        one, other = (images(3, seed=seed, side=12)[:, 0] for seed in (1, 2))
        found = likeness(one, other, size=(12, 12))
        for i in range(3):
            expected = spearmanr(one[i].flatten(), other[i].flatten()).statistic
            assert float(found.ranks[i]) == pytest.approx(float(expected), abs=1e-9)
            sizes = spearmanr(one[i].abs().flatten(), other[i].abs().flatten()).statistic
            assert float(found.magnitudes[i]) == pytest.approx(float(sizes), abs=1e-9)
        assert torch.equal(found.structure, structural_similarity(one, other))

    def test_few_cells_are_shown_at_the_size_of_the_picture(self):
        one, other = (images(2, seed=seed, side=4)[:, 0] for seed in (1, 2))
        found = likeness(one, other, size=(16, 12))
        large = [level.repeat_interleave(4, 1).repeat_interleave(3, 2) for level in (one, other)]
        assert torch.equal(found.structure, structural_similarity(*large))

    def test_a_picture_smaller_than_the_window_has_no_structure(self):
        one = images(2, side=4)[:, 0]
        found = likeness(one, one, size=(8, 8))
        assert found.structure.isnan().all()
        assert found.ranks.tolist() == pytest.approx([1.0, 1.0])
