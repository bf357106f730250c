"""Labels of other patients: how they are drawn, what a run says of them, how its maps compare."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.explainers import EXPLAINERS
from models.explainers.randomise_similarity import likeness
from pipelines import outcome
from pipelines import run as run_files
from pipelines.assemble import open_for_training
from pipelines.config import ConfigError, ExplainConfig, RunConfig, TrainConfig
from pipelines.errors import DataError, UsageError
from pipelines.explain import explain
from pipelines.feed import normalise
from pipelines.label_permutation import (
    REMARK,
    order_among_patients,
    remarks_on_labels,
    with_chosen_labels,
)
from pipelines.label_randomisation import label_randomisation
from pipelines.loading import load_network
from pipelines.train import train
from tests.pipelines.blocks import QUICK, write_blocks
from tests.pipelines.test_multilabel import write_findings

SHORT = QUICK.model_copy(update={"epochs": 1, "variant": "exact"})
PERMUTED = SHORT.model_copy(update={"labels": "permuted"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": 12, "validation": 8, "test": 6}
    return write_blocks(tmp_path_factory.mktemp("blocks") / "data", counts)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run and its control; read only."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:  # plots take longer than the training
        patch.setattr(outcome, "draw_curves", lambda *_, **__: None)
        patch.setattr(outcome, "_plots", lambda *_: {})
        train(SHORT, data=data, run=folder / "true")
        train(PERMUTED, data=data, run=folder / "permuted")
    return folder / "true", folder / "permuted"


@st.composite
def patients(draw: st.DrawFn) -> list[str]:
    """Pictures of patients of whom none has more than half of all."""
    counts = draw(st.lists(st.integers(1, 6), min_size=2, max_size=8))
    if 2 * max(counts) > sum(counts):
        counts += [1] * (2 * max(counts) - sum(counts))
    names = [f"p{who}" for who, count in enumerate(counts) for _ in range(count)]
    return draw(st.permutations(names))


class TestOrder:
    @given(names=patients(), seed=st.integers(0, 2**31))
    def test_no_picture_gets_a_label_of_its_own_patient(self, names: list[str], seed: int) -> None:
        rng = np.random.default_rng(seed)
        order = order_among_patients(names, split="train", rng=rng)
        assert sorted(order.tolist()) == list(range(len(names)))
        assert all(names[place] != names[other] for place, other in enumerate(order))

    def test_one_patient_with_more_than_half(self) -> None:
        with pytest.raises(DataError, match="one patient has 3 of the 5 labelled pictures of the"):
            order_among_patients(
                ["a", "b", "a", "c", "a"], split="train", rng=np.random.default_rng(0)
            )


class TestSetting:
    def test_true_labels_change_nothing(self, data: Path) -> None:
        found = open_for_training(data, image_size=None)
        assert with_chosen_labels(found, SHORT) is found
        assert remarks_on_labels(SHORT) == ()

    def test_training_and_validation_are_permuted_and_test_is_not(self, data: Path) -> None:
        found = open_for_training(data, image_size=None)
        permuted = with_chosen_labels(found, PERMUTED)
        for split in ("train", "validation"):
            own, other = found.splits[split].labels, permuted.splits[split].labels
            assert sorted(own) == sorted(other)
            assert (own != other).any()
        assert (found.splits["test"].labels == permuted.splits["test"].labels).all()
        assert permuted.remarks[-1] == REMARK
        again = with_chosen_labels(found, PERMUTED)
        assert (again.splits["train"].labels == permuted.splits["train"].labels).all()
        reseeded = PERMUTED.model_copy(update={"seed": 5})
        seeded = with_chosen_labels(found, reseeded).splits["train"].labels
        assert (seeded != permuted.splits["train"].labels).any()

    def test_label_sets_move_whole(self, tmp_path: Path) -> None:
        found = open_for_training(write_findings(tmp_path), image_size=None)
        permuted = with_chosen_labels(found, PERMUTED).splits["train"].labels
        own = found.splits["train"].labels
        assert permuted.shape == own.shape
        assert sorted(map(tuple, permuted)) == sorted(map(tuple, own))

    def test_other_words_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="labels: Input should be 'true' or 'permuted'"):
            TrainConfig.of({"labels": "random"})


class TestRun:
    def test_config_and_card_say_so(self, runs: tuple[Path, Path]) -> None:
        assert [run_files.read_config(run).train.labels for run in runs] == ["true", "permuted"]
        cards = [(run / "model_card.md").read_text() for run in runs]
        assert [REMARK in card for card in cards] == [False, True]

    def test_weights_differ(self, runs: tuple[Path, Path]) -> None:
        true, permuted = ((run / "best.safetensors").read_bytes() for run in runs)
        assert true != permuted

    def test_its_explanations_say_so(
        self, runs: tuple[Path, Path], data: Path, tmp_path: Path
    ) -> None:
        settings = ExplainConfig(methods=("attention",), overlays=False, limit=1)
        for run, expected in zip(runs, (False, True), strict=True):
            explain(settings, run=run, out=tmp_path / run.name, data=data)
            page = (tmp_path / run.name / "index.html").read_text()
            assert ("permuted among different patients" in page) == expected


class TestMaps:
    def test_rows_are_likenesses_of_maps_of_the_true_class(
        self, runs: tuple[Path, Path], data: Path
    ) -> None:
        rows = label_randomisation(*runs, data, ("gradient",), batch_size=4)
        test = open_for_training(data, image_size=None).splits["test"]
        assert [row["sample_id"] for row in rows] == list(test.sample_ids)
        config = run_files.read_config(runs[0])
        images = normalise(torch.stack([test[i] for i in range(len(test))]), config.normalisation)
        target = torch.from_numpy(test.labels)
        one, other = (
            EXPLAINERS["gradient"](load_network(run, config), images, target)[0].values
            for run in runs
        )
        found = likeness(one, other, size=(32, 32))
        assert [row["rank_correlation"] for row in rows] == pytest.approx(
            found.ranks.tolist(), abs=1e-3
        )
        assert [row["structural_similarity"] for row in rows] == pytest.approx(
            found.structure.tolist(), abs=1e-3
        )

    def test_each_level_has_its_rows_and_fewer_may_be_asked_for(
        self, runs: tuple[Path, Path], data: Path
    ) -> None:
        rows = label_randomisation(*runs, data, ("attention",), limit=2)
        assert [row["method"] for row in rows] == ["attention-fine"] * 2 + ["attention-coarse"] * 2
        assert {row["subject_id"] for row in rows} == {"patient0010"}

    def test_runs_that_are_no_pair(
        self, runs: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(UsageError, match="the labels of the two runs are permuted and true"):
            label_randomisation(runs[1], runs[0], data, ("gradient",))
        read = run_files.read_config

        def otherwise(run: Path) -> RunConfig:
            found: Any = read(run)
            settings = {"learning_rate": 1.0, "workers": 3} if run == runs[1] else {}
            return found.model_copy(update={"train": found.train.model_copy(update=settings)})

        monkeypatch.setattr(run_files, "read_config", otherwise)
        with pytest.raises(UsageError, match=r"differ in train\.learning_rate too, so"):
            label_randomisation(*runs, data, ("gradient",))

    def test_an_unknown_method(self, runs: tuple[Path, Path], data: Path) -> None:
        with pytest.raises(UsageError, match="no method 'gradiant'; did you mean 'gradient'"):
            label_randomisation(*runs, data, ("gradiant",))
