"""Two processes on one global batch end as one process does, and speak as one."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner, Result

from models.networks import build
from models.synchronised import GlobalBatchNorm, synchronise
from pipelines import distributed
from pipelines.cli import app
from pipelines.config import AugmentConfig, DataSummary, Normalisation
from pipelines.distributed import ALONE, Processes
from pipelines.errors import DataError, PeerFailed, PeerLost, UsageError
from pipelines.feed import EvaluationFeed, Order, StatisticsFeed, TrainingFeed
from pipelines.launch import Launch, launched
from tests.pipelines.two_processes import CASES, INTERRUPTED_AT, TRAINING, WORLD, trained

pytestmark = pytest.mark.usefixtures("sketched")

ROOT = Path(__file__).parents[2]
RANKS = range(WORLD)
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(make_blobs: Callable[..., Path]) -> Path:
    """18 training and 5 validation pictures, which two processes cannot share evenly."""
    return make_blobs(counts={"train": 18, "validation": 5, "test": 6}, size=32)


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left (``two_processes.py``)."""
    out = tmp_path_factory.mktemp("two")
    script = ROOT / "tests" / "pipelines" / "two_processes.py"
    command = [sys.executable, str(script), str(data), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    return out


@pytest.fixture(scope="module")
def laws(two: Path) -> list[dict[str, Any]]:
    return [torch.load(two / f"laws-{rank}.pt", weights_only=True) for rank in RANKS]


def call(data: Path, run: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["train", f"--data={data}", f"--run={run}", *TRAINING, *words])


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    assert call(data, run).exit_code == 0
    return run


def said(two: Path, name: str) -> list[tuple[int, str]]:
    """Exit code and words of each process."""
    texts = [(two / f"{name}-{rank}.txt").read_text() for rank in RANKS]
    return [(int(text.split("\n", 1)[0]), text.split("\n", 1)[1].strip()) for text in texts]


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "last.ckpt", weights_only=True)


class TestLaw:
    @pytest.mark.parametrize("case", CASES)
    def test_gradients_weights_and_statistics_are_those_of_one_process(
        self, laws: list[dict[str, Any]], case: str
    ) -> None:
        expected = trained(ALONE, case)
        assert laws[0][case].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(laws[0][case][name], value, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("case", CASES)
    def test_both_processes_hold_the_same_to_the_bit(
        self, laws: list[dict[str, Any]], case: str
    ) -> None:
        for name in laws[0][case]:
            torch.testing.assert_close(
                laws[0][case][name], laws[1][case][name], rtol=0, atol=0, msg=name
            )

    def test_an_idle_parameter_has_no_gradient_and_does_not_move(
        self, laws: list[dict[str, Any]]
    ) -> None:
        found = laws[0]["idle-parameters"]
        (name,) = (name for name in found["state"] if name.endswith("witness"))
        assert found["gradients"][name] is None
        assert not found["state"][name].any()
        assert sum(value is None for value in found["gradients"].values()) == 1

    def test_what_was_shared_is_whole_again(self, laws: list[dict[str, Any]]) -> None:
        for found in laws:
            for total, values in found["rejoined"].items():
                assert values[:, 0].tolist() == [float(i**2) for i in range(total)]

    def test_what_the_first_made_all_have(self, laws: list[dict[str, Any]]) -> None:
        assert [found["first"] for found in laws] == [{"made by": 0}] * WORLD


class TestRun:
    def test_it_is_one_run_folder_with_the_files_of_one_process(self, two: Path, one: Path) -> None:
        found, expected = ({path.name for path in run.iterdir()} for run in (two / "run", one))
        assert found == expected
        assert len(list((two / "run" / "tensorboard").iterdir())) == 1
        assert (two / "run" / "config.yaml").read_bytes() == (one / "config.yaml").read_bytes()

    @pytest.mark.parametrize("name", ["best.safetensors", "last.ckpt"])
    def test_its_weights_are_those_of_one_process(self, two: Path, one: Path, name: str) -> None:
        read = (
            load_file if name == "best.safetensors" else lambda path: last(path.parent)["network"]
        )
        torch.testing.assert_close(
            dict(read(two / "run" / name)), dict(read(one / name)), rtol=1e-5, atol=1e-6
        )

    def test_its_epochs_and_predictions_are_those_of_one_process(
        self, two: Path, one: Path
    ) -> None:
        for name in ("metrics.csv", "predictions.csv"):
            tables = []
            for run in (two / "run", one):
                with (run / name).open(newline="") as stream:
                    tables.append(list(csv.DictReader(stream)))
            for row, expected in zip(*tables, strict=True):
                assert row.keys() == expected.keys()
                for key in row.keys() - {"seconds"}:
                    assert near(row[key], expected[key]), (name, key)

    def test_one_process_speaks(self, two: Path) -> None:
        (code, words), (other_code, other_words) = said(two, "run")
        assert (code, other_code, other_words) == (0, 0, "")
        report = json.JSONDecoder().raw_decode(words)[0]
        assert report["remarks"] == ["trained by 2 processes, each on its share of every batch"]
        assert "memory: about" in words
        card = (two / "run" / "model_card.md").read_text()
        assert "- trained by 2 processes, each on its share of every batch" in card


def near(found: str | float, expected: str | float) -> bool:
    try:
        return float(found) == pytest.approx(float(expected), rel=1e-4, abs=2e-6)
    except ValueError:
        return found == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "code", "message"),
        [
            ("again", 4, "RUN_EXISTS: the run folder exists and is not empty"),
            ("unknown", 2, "UNKNOWN_NETWORK: no network 'resnet81'; did you mean 'resnet18'?"),
            ("narrow", 2, "BATCH_TOO_SMALL: the batch has 1 pictures for 2 processes, and each"),
            ("cut", 2, "LOSS_NOT_FINITE: process 1 refuses"),
        ],
    )
    def test_all_end_and_one_says_why(self, two: Path, name: str, code: int, message: str) -> None:
        found = said(two, name)
        assert sorted(ended for ended, _ in found) == [1, code]
        assert "".join(words for _, words in found).count("dualwitness: ") == 1
        assert f"dualwitness: {message}" in next(words for ended, words in found if ended == code)

    def test_a_refusal_of_the_first_reaches_those_who_wait_for_it(self, two: Path) -> None:
        endings = [(two / f"refused-{rank}.txt").read_text() for rank in RANKS]
        assert endings == ["TRIED", "PEER_FAILED"]

    def test_the_death_of_a_process_ends_the_others(self, two: Path) -> None:
        text = (two / "killed-0.txt").read_text()
        assert text.startswith("1\n")
        assert "PEER_LOST: another process of this training died or does not answer" in text
        assert not (two / "killed-1.txt").exists()

    def test_a_refused_batch_leaves_nothing(self, two: Path) -> None:
        assert not (two / "x").exists()


def test_one_process_goes_on_where_two_were_interrupted(two: Path, one: Path, data: Path) -> None:
    run = two / "cut"
    assert last(run)["iteration"] == INTERRUPTED_AT
    assert call(data, run, "--resume").exit_code == 0
    torch.testing.assert_close(last(run)["network"], last(one)["network"], rtol=1e-5, atol=1e-6)
    for key, value in last(one)["history"]["rows"][0].items():
        if key != "seconds":
            assert near(last(run)["history"]["rows"][0][key], value)


class TestLaunch:
    def test_without_a_launcher_a_process_is_alone(self) -> None:
        for missing in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            found = launched({name: TORCHRUN[name] for name in TORCHRUN if name != missing})
            assert found == Launch()
            assert found.alone
            assert found.leads

    def test_what_torchrun_says_is_read(self) -> None:
        found = launched(TORCHRUN)
        assert found == Launch(rank=3, world=8, local_rank=1, local_world=2)
        assert not found.alone
        assert not found.leads

    def test_another_launcher_may_say_less(self) -> None:
        shorter = {name: TORCHRUN[name] for name in TORCHRUN if not name.startswith("LOCAL")}
        assert launched(shorter) == Launch(rank=3, world=8, local_rank=3, local_world=8)

    @pytest.mark.parametrize(
        "changes",
        [{"RANK": "8"}, {"RANK": "-1"}, {"WORLD_SIZE": "two"}, {"LOCAL_RANK": "2"}],
    )
    def test_what_makes_no_sense_is_refused(self, changes: dict[str, str]) -> None:
        message = "RANK='.*', WORLD_SIZE='.*', which are no process and number of processes"
        with pytest.raises(UsageError, match=message) as refusal:
            launched({**TORCHRUN, **changes})
        assert refusal.value.code == "BAD_LAUNCH"

    @pytest.mark.parametrize("total", [1, 2, 5, 6, 7])
    @pytest.mark.parametrize("world", [1, 2, 3, 4])
    def test_positions_are_all_rows_and_as_many_in_each_process(
        self, total: int, world: int
    ) -> None:
        shares = [Launch(rank=rank, world=world).positions(total) for rank in range(world)]
        assert {len(share) for share in shares} == {-(-total // world)}
        assert set(np.concatenate(shares).tolist()) == set(range(total))
        assert all(len(set(share.tolist())) == len(share) for share in shares)


class TestProcesses:
    second = Processes(Launch(rank=1, world=3, local_rank=1, local_world=3))
    summary = DataSummary(name="a", classes=("x", "y"), in_channels=1, picture_size=(8, 8))

    def test_alone_everything_is_as_it_was(self) -> None:
        values, network = torch.arange(3), nn.Linear(1, 1)
        assert ALONE.rejoined(values, values) is values
        assert ALONE.summed(values) is values
        assert ALONE.first(lambda: 7) == 7
        assert ALONE.remarks(variant="dual-published") == ()
        assert ALONE.device(torch.device("cuda")) == torch.device("cuda")
        model = build("vit-narrow", variant="baseline", in_channels=1, classes=2, image_size=32)
        cpu = torch.device("cpu")
        assert ALONE.joint(model, called=network, device=cpu, penalised=True) is network
        with distributed.joined(Launch()) as found:
            assert found is ALONE

    def test_each_has_its_own_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        assert self.second.device(torch.device("cuda")) == torch.device("cuda", 1)
        assert self.second.device(torch.device("cpu")) == torch.device("cpu")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        message = "3 processes were started on a machine with 1 GPUs, .* --nproc-per-node 1"
        with pytest.raises(UsageError, match=message) as refusal:
            self.second.device(torch.device("cuda"))
        assert refusal.value.code == "TOO_FEW_GPUS"

    @pytest.mark.parametrize("width", [1, 2])
    def test_a_batch_has_a_picture_for_each(self, width: int) -> None:
        self.second.refuse_small_batch(3)
        message = f"the batch has {width} pictures for 3 .*to 3 or more.*at most {width} processes"
        with pytest.raises(UsageError, match=message):
            self.second.refuse_small_batch(width)

    def test_all_have_the_same_data_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Processes, "first", lambda self, make: self_summary)
        self_summary = self.summary
        self.second.refuse_other_data(self.summary)
        other = self.summary.model_copy(update={"manifest_sha256": "1"})
        with pytest.raises(DataError, match="process 1 has another data set than process 0"):
            self.second.refuse_other_data(other)

    def test_a_coupled_penalty_is_remarked_on(self) -> None:
        assert len(self.second.remarks(variant="dual")) == 1
        assert (
            "its gradients are not those of one process"
            in self.second.remarks(variant="dual-published")[1]
        )

    @pytest.mark.parametrize(
        ("kind", "told"), [(distributed.FAILED, PeerFailed), (distributed.LOST, PeerLost)]
    )
    def test_their_ends_have_a_code_and_advice(self, kind: tuple[str, str], told: type) -> None:
        error = told(*kind)
        assert (error.code, error.exit_code) == (kind[0], 1)


class Numbered:
    """Pictures that hold their own number."""

    def batches(self, orders: Any) -> Any:
        grid = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        return (torch.from_numpy(order).float()[:, None, None, None] + grid for order in orders)


class TestShares:
    labels = np.arange(11) % 2
    measured = Normalisation(mean=(0.0,), sd=(1.0,))

    def order(self, launch: Launch, *, batch_size: int = 5) -> Order:
        return Order(
            labels=self.labels, batch_size=batch_size, seed=3, balanced=True, launch=launch
        )

    @pytest.mark.parametrize("world", [2, 3])
    def test_of_a_batch_are_the_pictures_that_one_process_would_have_changed_alike(
        self, world: int
    ) -> None:
        def batches(launch: Launch) -> list[dict[str, Any]]:
            feed = TrainingFeed(
                Numbered(), self.order(launch), measured=self.measured, settings=AugmentConfig()
            )
            return list(islice(feed, 3))

        shares = [batches(Launch(rank=rank, world=world)) for rank in range(world)]
        for i, whole in enumerate(batches(Launch())):
            for rank in range(world):
                for name, values in shares[rank][i].items():
                    torch.testing.assert_close(values, whole[name][rank::world], rtol=0, atol=1e-6)

    def test_of_statistics_are_all_pictures_and_one_at_least(self) -> None:
        def numbers(launch: Launch, pictures: int) -> list[list[float]]:
            order = self.order(launch, batch_size=2)
            feed = StatisticsFeed(Numbered(), order, measured=self.measured, pictures=pictures)
            return [batch[:, 0, 0, 0].tolist() for batch in feed]

        for pictures, expected in ((0, 0), (1, 2), (9, 9)):
            shares = [numbers(Launch(rank=rank, world=2), pictures) for rank in RANKS]
            assert len(shares[0]) == len(shares[1])
            assert (
                len({number for share in shares for part in share for number in part}) == expected
            )
            assert all(part for share in shares for part in share)
        whole = numbers(Launch(), 9)
        for i, batch in enumerate(whole):
            assert [shares[0][i], shares[1][i]] == [batch[0::2], batch[1::2]]

    def test_of_an_evaluation_are_smaller_batches(self) -> None:
        feed = EvaluationFeed(
            Numbered(),
            self.labels,
            measured=self.measured,
            batch_size=4,
            launch=Launch(rank=1, world=2),
        )
        batches = list(feed)
        index = torch.cat([batch["index"] for batch in batches])
        assert [len(batch["index"]) for batch in batches] == [2, 2, 2]
        assert len(feed) == 3
        assert index.tolist() == [1, 3, 5, 7, 9, 0]
        images = torch.cat([batch["image"] for batch in batches])
        assert images[:, 0, 0, 0].tolist() == index.tolist()
        labels = torch.cat([batch["label"] for batch in batches])
        assert labels.tolist() == self.labels[index.numpy()].tolist()


class TestSynchronise:
    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize("network", ["resnet10-narrow", "unet-encoder-narrow"])
    def test_it_keeps_state_and_evaluation(self, network: str, fused: bool) -> None:
        model = build(network, variant="exact", in_channels=1, classes=2, image_size=32).eval()
        images = torch.randn((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
        before, state = model(images).logits, model.state_dict(keep_vars=True)
        synchronise(model, fused=fused)
        kinds = {type(part) for part in model.modules() if "Norm2d" in repr(type(part))}
        assert kinds == set()
        kind = nn.SyncBatchNorm if fused else GlobalBatchNorm
        assert any(isinstance(part, kind) for part in model.modules())
        after = model.state_dict(keep_vars=True)
        assert after.keys() == state.keys()
        assert all(after[name] is state[name] for name in state)
        assert not any(part.training for part in model.modules())
        torch.testing.assert_close(model(images).logits, before)

    def test_a_second_time_changes_nothing(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(3))
        synchronise(model, fused=False)
        first = model[0]
        synchronise(model, fused=False)
        assert model[0] is first
