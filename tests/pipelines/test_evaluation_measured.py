"""Single maps: what is ranked, what fills holes, which controls there are, what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from models.errors import MetricError
from models.explainers import SimpleGradient
from models.networks import build
from pipelines.config import Normalisation
from pipelines.errors import MemoryShortError
from pipelines.evaluation_controls import Known, control_maps, controls_of
from pipelines.evaluation_maps import (
    POST_HOC,
    LevelMaps,
    fits,
    makers_of,
    methods_for,
    randomised_similarity,
    refuse_nonfinite,
)
from pipelines.evaluation_measured import (
    Truth,
    columns,
    fillings,
    measured_alone,
    measured_together,
)
from pipelines.evaluation_samples import samples_of
from tests.pipelines.test_evaluation_samples import SIDE, Toy, pictures

CPU = torch.device("cpu")
FINE = torch.tensor([[[0.4, 0.1], [0.3, 0.2]]])


def truth(regions: torch.Tensor | None) -> Truth:
    nothing = torch.zeros(0, dtype=torch.int64)
    images = torch.zeros(0, 1, 2, 2)
    return Truth(regions=regions, removed=nothing, images=images, labels=nothing, targets=nothing)


def network(variant: str = "exact", name: str = "resnet10-narrow") -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(name, variant=variant, in_channels=1, classes=2, image_size=32).eval()


class TestAlone:
    def test_a_signed_map_is_ranked_by_what_speaks_for_the_class(self) -> None:
        values = torch.tensor([[[1.0, -9.0], [0.0, 0.0]]])
        region = torch.zeros(1, 2, 2, dtype=torch.bool)
        region[0, 0, 0] = True
        maps = LevelMaps(method="lrp", level="", values=values, signed=True)
        found = measured_alone(maps, truth(region))
        assert found["average_precision"] == found["mass_inside"] == 1
        assert found["gini"] == measured_alone(
            LevelMaps(method="x", level="", values=values.abs()), truth(None)
        )["gini"]  # fmt: skip

    def test_regions_of_no_pixel_and_of_all(self) -> None:
        regions = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)]).bool()
        maps = LevelMaps(method="x", level="", values=FINE.expand(2, 2, 2))
        found = measured_alone(maps, truth(regions))
        for name in ("average_precision", "iou_equal_area", "pointing_game", "mass_inside"):
            assert math.isnan(found[name][0]), name
            assert found[name][1] == pytest.approx(1), name
        assert found["iou_900"][1] == pytest.approx(0.1)

    def test_without_regions_only_the_shape_is_measured(self) -> None:
        found = measured_alone(LevelMaps(method="x", level="", values=FINE), truth(None))
        assert set(found) == {"gini", "group_gini", "sparsity", "entropy"}
        assert set(found) < set(columns((), regions=False, verify=False))


class TestTogether:
    def test_levels_that_have_nothing_in_common_are_infinitely_far(self) -> None:
        fine = LevelMaps(method="attention", level="fine", values=FINE)
        half = torch.tensor([[[1.0, 0.0]]])
        other = torch.tensor([[[0.0, 1.0]]])
        found = measured_together(
            [
                LevelMaps(method="attention", level=name, values=values)
                for name, values in (("fine", half), ("coarse", other))
            ]
        )
        assert found["total_variation"] == 1
        assert np.isinf(found["kl_from_fine"]).all()
        assert measured_together([fine]) == {}

    def test_maps_that_are_no_distributions_are_not_compared(self) -> None:
        maps = [LevelMaps(method="gradcam", level=x, values=FINE) for x in ("fine", "coarse")]
        assert measured_together(maps) == {}


class TestFillings:
    NORMALISATION = Normalisation(mean=(3.0, -1.0), sd=(2.0, 4.0))

    def test_zero_is_black_and_the_mean_is_zero_after_normalisation(self) -> None:
        train = pictures(Toy(label=np.array([0, 1])))
        found = fillings(("zero", "mean"), train, self.NORMALISATION, device=CPU)
        nothing = torch.zeros(1, 2, 4, 4)
        zero, mean = (found[name](nothing) for name in ("zero", "mean"))
        assert isinstance(zero, torch.Tensor)
        assert isinstance(mean, torch.Tensor)
        assert zero.flatten().tolist() == [-1.5, 0.25]
        assert mean.flatten().tolist() == [0, 0]

    def test_the_mean_of_pictures_scored_over_the_brain_is_measured(self) -> None:
        images = np.zeros((2, 1, SIDE, SIDE), dtype=np.int16)
        images[:, :, :4] = 7
        rows = Toy(
            label=np.array([0, 1]),
            image=images,
            brain_mean=np.full((2, 1), 5.0, dtype=np.float32),
            brain_sd=np.full((2, 1), 2.0, dtype=np.float32),
        )
        same = Normalisation(mean=(0.0,), sd=(1.0,))
        found = fillings(("zero", "mean"), pictures(rows), same, device=CPU)
        zero, mean = (found[name](torch.zeros(1, 1, 4, 4)) for name in ("zero", "mean"))
        assert isinstance(zero, torch.Tensor)
        assert isinstance(mean, torch.Tensor)
        assert zero.flatten().tolist() == [0]
        assert_allclose(mean.flatten().numpy(), [0.5])  # (7 - 5) / 2 in half of the picture

    def test_a_blurred_picture_and_what_the_neighbours_say(self) -> None:
        train = pictures(Toy(label=np.array([0, 1])))
        found = fillings(("blur", "noisy-linear"), train, self.NORMALISATION, device=CPU)
        blurred = found["blur"](torch.full((2, 1, 8, 8), 3.0))
        assert isinstance(blurred, torch.Tensor)
        assert_allclose(blurred.numpy(), 3.0, rtol=1e-6)
        assert callable(found["noisy-linear"](torch.zeros(1, 1, 8, 8)))


class TestMethods:
    def test_what_is_usual(self) -> None:
        assert methods_for((), "exact", network()) == ("attention",)
        assert methods_for((), "unconstrained", network("unconstrained")) == ("attention", "cvx")
        assert methods_for((), "baseline", network("baseline")) == POST_HOC
        own = methods_for((), "baseline", network("baseline", "vit-narrow"))
        assert own[:2] == ("self-attention", "rollout")
        assert methods_for(("lrp", "lrp"), "exact", network()) == ("lrp",)
        assert "occlusion" in methods_for(("lrp", "all"), "exact", network())

    def test_gradcam_looks_at_both_levels_and_an_unfit_method_is_found_out(self) -> None:
        net, image = network("baseline"), torch.zeros(1, 1, 32, 32)
        target = torch.zeros(1, dtype=torch.int64)
        makers = makers_of(("gradcam", "gradient"), net, batch_size=4)
        fine, coarse = makers["gradcam"](image, target)
        assert (fine.level, coarse.level) == ("fine", "coarse")
        assert fine.values.shape[1] == 2 * coarse.values.shape[1]
        (gradient,) = makers["gradient"](image, target)
        assert gradient.key == ("gradient", "")
        assert fits("gradcam", net, image)
        assert not fits("attention", net, image)

    def test_a_map_that_does_not_look_at_the_weights_stays_the_same(self) -> None:
        net, images = network("baseline"), torch.rand(3, 1, 32, 32)
        target = torch.zeros(3, dtype=torch.int64)
        before = {name: value.clone() for name, value in net.state_dict().items()}

        def of_the_picture(pictures: torch.Tensor, _: torch.Tensor) -> list[LevelMaps]:
            return [LevelMaps(method="picture", level="", values=pictures[:, 0])]

        (found,) = randomised_similarity(of_the_picture, net, images, target, seed=0).values()
        assert_allclose(found.numpy(), 1, atol=1e-12)
        makers = makers_of(("gradient",), net, batch_size=4)
        (other,) = randomised_similarity(makers["gradient"], net, images, target, seed=0).values()
        assert (other < 0.9).all()
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_no_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def greedy(*_: Any) -> None:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(SimpleGradient, "explain", greedy)
        make = makers_of(("gradient",), network(), batch_size=4)["gradient"]
        with pytest.raises(MemoryShortError, match="memory ran out while 'gradient' explained 4"):
            make(torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.int64))

    def test_a_map_that_is_not_finite(self) -> None:
        maps = LevelMaps(method="lrp", level="fine", values=torch.tensor([[[math.inf]], [[1.0]]]))
        with pytest.raises(MetricError, match="1 of 2 maps of 'lrp fine'"):
            refuse_nonfinite(maps)


class TestControls:
    def test_the_mean_mask_is_that_of_the_training_pictures(self) -> None:
        masks = np.zeros((4, SIDE, SIDE), dtype=np.uint8)
        masks[0] = 1  # of the first class: not counted
        masks[1, :2] = 1
        masks[3, :1] = 1
        train = pictures(Toy(label=np.array([0, 1, 0, 1]), mask=masks))
        samples = samples_of(train, ("no", "yes"), perturbed=0)
        controls = controls_of(samples, train, seed=0)
        known = Known(indices=(0, 1), images=torch.zeros(2, 1, SIDE, SIDE), regions=None)
        (maps,) = control_maps("mean-mask", controls["mean-mask"], known)
        expected = np.zeros((SIDE, SIDE))
        expected[0], expected[1] = 2 / 24, 1 / 24
        assert_allclose(maps.values.numpy(), np.stack([expected] * 2), rtol=1e-6)
        assert not controls["true-mask"](known).any()

    def test_no_training_region_is_a_refusal_of_this_control_only(self) -> None:
        masks = np.zeros((2, SIDE, SIDE), dtype=np.uint8)
        train = pictures(Toy(label=np.array([0, 1]), mask=masks))
        samples = samples_of(train, ("no", "yes"), perturbed=0)
        controls = controls_of(samples, train, seed=0)
        known = Known(indices=(0,), images=torch.zeros(1, 1, SIDE, SIDE), regions=None)
        assert controls["uniform"](known).sum() == pytest.approx(1)
        with pytest.raises(MetricError, match="none of the training pictures has a true region"):
            controls["mean-mask"](known)

    def test_without_regions_there_is_no_control_of_them(self) -> None:
        train = pictures(Toy(label=np.array([0, 1])))
        samples = samples_of(train, ("no", "yes"), perturbed=0)
        assert list(controls_of(samples, train, seed=0)) == [
            "random", "uniform", "gaussian", "edges",
        ]  # fmt: skip

    def test_random_maps_are_drawn_anew_with_another_seed(self) -> None:
        train = pictures(Toy(label=np.array([0, 1])))
        samples = samples_of(train, ("no", "yes"), perturbed=0)
        images = torch.zeros(2, 1, SIDE, SIDE)
        known = Known(indices=(0, 1), images=images, regions=None)
        one, again, other = (
            controls_of(samples, train, seed=seed)["random"](known) for seed in (0, 0, 1)
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert not torch.equal(one[0], one[1])
