"""A reproduction end to end on tiny scans: what it leaves, how it goes on, what it refuses."""

import hashlib
import html
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from safetensors.torch import load_file

from pipelines import reproduce as reproduce_module
from pipelines import reproduce_runs
from pipelines import run as run_files
from pipelines.config import Brats18Config, EvaluateConfig
from pipelines.demo_chains import DEMOS
from pipelines.errors import DataError, DivergedError, RunError, RunExists, UsageError
from pipelines.pages import PNG_SIGNATURE
from pipelines.reproduce import reproduce
from pipelines.reproduce_choices import Effort, RealScans, ReproduceReport, Watch
from pipelines.reproduce_groups import Group, Plan
from pipelines.reproduce_judges import evaluated
from pipelines.reproduce_records import MARK
from pipelines.train import train
from preprocessing.errors import OutputError
from preprocessing.journal import OutputLock
from preprocessing.phantoms.brats18 import Brats18Options
from preprocessing.records import Died

KEY = bytes(range(32))
TINY = {
    "network": "resnet10-narrow",
    "image_size": 32,
    "epochs": 1,
    "batch_size": 16,
    "bootstrap": 0,
    "workers": 0,
}
BUILD = Brats18Config(
    image_size=48,
    min_tumour_area=60,
    min_half_area=20,
    test_fraction=0.25,
    validation_fraction=0.25,
)
PLAN = Plan(
    dataset="brats18",
    size="small",
    subjects=12,
    phantoms={"options": Brats18Options(spacing_mm=5.0, matrix=48, slices=31)},
    phantom_build=BUILD,
    real_build=BUILD,
    groups=(
        Group(name="baseline", variants=("baseline",), settings=TINY),
        Group(name="joint", variants=("exact",), settings=TINY),
        Group(
            name="frozen",
            variants=("exact-two-pass",),
            settings={**TINY, "freeze_trunk": True},
            start="baseline",
        ),
    ),
    evaluate=EvaluateConfig(resamples=20),
    pictures=1.0,
    megabytes=0.1,
    seconds=0.1,
    real_pictures=120,
)
PLACES = [
    f"{kind}/seed-{seed}"
    for seed in (0, 1)
    for kind in ("baseline/baseline", "joint/exact", "frozen/exact-two-pass")
]
WEIGHTS, PAGE = run_files.WEIGHTS, "evaluation/report.html"


def tensors_of(run: Path) -> bytes:
    """All weights as bytes; the file's header has the hash of the data set's own manifest."""
    tensors = load_file(run / WEIGHTS)
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


def judge(config: EvaluateConfig, *, runs: Sequence[Path], out: Path, **_: Any) -> list[str]:
    """Stand in for the evaluation: a page that depends on the weights and on nothing else."""
    found = hashlib.sha256(b"".join(sorted(tensors_of(run) for run in runs))).hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(f"{config.resamples} {found}")
    return [f"{len(runs)} runs are compared"]


def run(out: Path, plan: Plan = PLAN, **changes: Any) -> ReproduceReport:
    return reproduce(plan, out=out, **{"seeds": 2, "judge": judge, **changes})


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("what is done was done again")


def refusing(*which: tuple[str, int]) -> Callable[..., Any]:
    """Train as ever, but for some runs, which diverge."""

    def stand_in(settings: Any, **others: Any) -> Any:
        if (settings.variant, settings.seed) in which:
            raise DivergedError("LOSS_NOT_FINITE", "the loss is no number")
        return train(settings, **others)

    return stand_in


def results(out: Path) -> dict[str, str]:
    """Hashes of everything that must come out the same: shards, weights and the page."""
    names = [PAGE, *(str(path.relative_to(out)) for path in sorted(out.rglob("data/shards/*.h5")))]
    found = {name: run_files.sha256(out / name) for name in names}
    runs = {place: tensors_of(out / "runs" / place) for place in PLACES}
    return found | {place: hashlib.sha256(weights).hexdigest() for place, weights in runs.items()}


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    """Leave figures empty: they take longer than all the rest."""
    with pytest.MonkeyPatch.context() as during:
        during.setattr(
            FigureCanvasAgg, "print_png", lambda _, file, **__: file.write(PNG_SIGNATURE)
        )
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReproduceReport, list[str]]:
    """Three variants in three groups, two seeds; read only."""
    out, told = tmp_path_factory.mktemp("reproduced") / "out", list[str]()
    return out, run(out, watch=Watch(tell=told.append)), told


@pytest.fixture
def copied(finished: tuple[Path, ReproduceReport, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


class TestAReproduction:
    def test_it_leaves_scans_data_runs_and_a_page(
        self, finished: tuple[Path, ReproduceReport, list[str]]
    ) -> None:
        out, report, _ = finished
        expected = {"phantoms", "data", "runs", "evaluation", MARK}
        assert {path.name for path in out.iterdir()} == expected
        found = {str(path.parent.relative_to(out / "runs")) for path in out.rglob("run.json")}
        assert found == set(PLACES)
        assert not list(out.rglob(run_files.CHECKPOINT))
        assert report.page == out / PAGE
        assert report.lines() == ["6 runs are compared"]
        assert report.as_json() == {
            "runs": 6, "found": ["6 runs are compared"], "failures": [], "already_complete": False,
        }  # fmt: skip

    def test_a_run_is_of_its_group(self, finished: tuple[Path, ReproduceReport, list[str]]) -> None:
        for place in PLACES:
            _, variant, seed = place.split("/")
            found = run_files.read_config(finished[0] / "runs" / place).train
            assert (found.variant, f"seed-{found.seed}") == (variant, seed)
            assert found.freeze_trunk == place.startswith("frozen")

    def test_a_frozen_trunk_is_that_of_its_own_seed(
        self, finished: tuple[Path, ReproduceReport, list[str]]
    ) -> None:
        runs = finished[0] / "runs"

        def trunk(place: str) -> dict[str, bytes]:
            tensors = load_file(runs / place / WEIGHTS)
            names = [name for name in tensors if name.startswith("trunk.")]
            return {name: tensors[name].numpy().tobytes() for name in names}

        baselines = [trunk(f"baseline/baseline/seed-{seed}") for seed in (0, 1)]
        assert baselines[0] != baselines[1]
        for seed in (0, 1):
            assert trunk(f"frozen/exact-two-pass/seed-{seed}") == baselines[seed]
            origin = run_files.read_config(runs / f"frozen/exact-two-pass/seed-{seed}").origin
            source = runs / f"baseline/baseline/seed-{seed}" / WEIGHTS
            assert origin.sha256 == run_files.sha256(source)

    def test_it_tells_each_step(self, finished: tuple[Path, ReproduceReport, list[str]]) -> None:
        told = [line.rpartition(":")[0] for line in finished[2]]
        assert told[:4] == [
            "synthetic scans", "data set", "baseline: baseline, seed 0 (1 of 2, 6 in all)",
            "baseline: baseline, seed 1 (2 of 2, 6 in all)",
        ]  # fmt: skip
        assert told[4] == "joint: exact, seed 0 (1 of 4, 6 in all)"
        assert told[-1] == "evaluation"
        assert all(line.endswith(" s") for line in finished[2])

    def test_nothing_names_a_path(self, finished: tuple[Path, ReproduceReport, list[str]]) -> None:
        for path in finished[0].rglob("*"):
            if path.is_file() and "phantoms" not in path.parts:
                assert str(finished[0]).encode() not in path.read_bytes(), path.name


class TestAgain:
    @pytest.mark.parametrize("resume", [False, True])
    def test_what_is_complete_is_left_alone(
        self,
        finished: tuple[Path, ReproduceReport, list[str]],
        resume: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out = finished[0]
        before = times(out)
        monkeypatch.setattr(reproduce_module, "build", never)
        monkeypatch.setattr(reproduce_runs, "train", never)
        report = run(out, judge=never, resume=resume)
        assert times(out) == before
        assert report.lines() == ["6 runs are compared", "complete already; nothing was written"]

    def test_scans_may_be_deleted_once_they_were_read(
        self, finished: tuple[Path, ReproduceReport, list[str]], copied: Path
    ) -> None:
        shutil.rmtree(copied / "phantoms")
        (copied / PAGE).unlink()
        run(copied, resume=True)
        assert not (copied / "phantoms").exists()
        assert results(copied) == results(finished[0])

    def test_a_page_that_was_changed_is_written_anew(
        self, finished: tuple[Path, ReproduceReport, list[str]], copied: Path
    ) -> None:
        (copied / PAGE).write_text("something else")
        report = run(copied, resume=True)
        assert not report.already_complete
        assert results(copied) == results(finished[0])

    def test_a_run_that_is_gone_is_trained_again_and_is_the_same(
        self, finished: tuple[Path, ReproduceReport, list[str]], copied: Path
    ) -> None:
        """Alone, in this process, or beside another: the same to the bit."""
        for place in (PLACES[1], PLACES[4]):
            shutil.rmtree(copied / "runs" / place)
        run(copied, resume=True, effort=Effort(jobs=2))
        assert results(copied) == results(finished[0])


class TestMore:
    def test_seeds_and_variants_are_added_and_what_is_there_stays(
        self, finished: tuple[Path, ReproduceReport, list[str]], tmp_path: Path
    ) -> None:
        """Begun with one seed of one group, it ends as one that was asked for at once."""
        out, told = tmp_path / "out", list[str]()
        run(out, replace(PLAN, groups=PLAN.groups[:1]), seeds=1)
        with pytest.raises(RunExists, match="unfinished: go on with --resume"):
            run(out)
        before = times(out / "runs")
        report = run(out, resume=True, watch=Watch(tell=told.append))
        assert results(out) == results(finished[0])
        after = times(out / "runs")
        assert {name: after[name] for name in before} == before
        assert report.runs == 6
        assert not any(line.startswith("baseline: baseline, seed 0") for line in told)
        assert run(out).already_complete
        with pytest.raises(RunExists, match=r"it differs in seeds"):
            run(out, seeds=1, resume=True)


class Interrupter:
    """Interrupts at the first of the points that were not interrupted at yet."""

    def __init__(self) -> None:
        self.points: list[str] = []

    def at(self, point: str) -> None:
        if point not in self.points:
            self.points.append(point)
            raise KeyboardInterrupt

    def progress(self, stage: str, done: int, total: int) -> None:
        if done > 1 and stage in ("synthetic scans", "cases", "2 runs"):
            self.at(f"in {stage}")

    def tell(self, line: str) -> None:
        self.at(f"after {line.partition(':')[0]}")

    def judge(self, *args: Any, **others: Any) -> list[str]:
        self.at("before evaluation")
        return judge(*args, **others)


class TestGoingOn:
    def test_interrupted_everywhere_it_ends_as_the_uninterrupted(
        self, finished: tuple[Path, ReproduceReport, list[str]], tmp_path: Path
    ) -> None:
        interrupter, out = Interrupter(), tmp_path / "out"
        watch = Watch(progress=interrupter.progress, tell=interrupter.tell)
        failures = None
        while failures is None:
            with suppress(KeyboardInterrupt):
                failures = run(out, resume=True, watch=watch, judge=interrupter.judge).failures
            assert not (out / ".lock").exists()
            assert len(interrupter.points) < 30
        assert {
            "in synthetic scans", "after synthetic scans", "in cases", "after data set",
            "in 2 runs", "after baseline", "after joint", "after frozen", "before evaluation",
            "after evaluation",
        } <= set(interrupter.points)  # fmt: skip
        assert results(out) == results(finished[0])
        assert failures == ()
        assert run(out).already_complete

    def test_an_unfinished_one_wants_to_be_resumed(self, copied: Path) -> None:
        shutil.rmtree(copied / "runs" / PLACES[1])
        with pytest.raises(RunExists, match="unfinished: go on with --resume") as refusal:
            run(copied)
        assert refusal.value.code == "RUN_EXISTS"

    def test_another_process_in_the_folder(self, copied: Path) -> None:
        (copied / PAGE).unlink()
        with OutputLock(copied), pytest.raises(OutputError, match="is writing to this output"):
            run(copied, resume=True)

    def test_a_trunk_of_another_baseline_is_not_kept(
        self, finished: tuple[Path, ReproduceReport, list[str]], copied: Path
    ) -> None:
        place = copied / "runs" / "frozen/exact-two-pass/seed-1"
        shutil.rmtree(copied / "runs" / "baseline/baseline/seed-1")
        shutil.copytree(
            finished[0] / "runs" / "baseline/baseline/seed-0",
            copied / "runs" / "baseline/baseline/seed-1",
        )
        report = run(copied, resume=True)
        ((name, code, message),) = report.failures
        assert (name, code) == ("frozen/exact-two-pass/seed-1", "OTHER_BASELINE")
        assert "delete this run's folder" in message
        shutil.rmtree(place)
        assert run(copied, resume=True).failures == ()


class TestFailures:
    def test_a_failing_run_takes_no_other_with_it(
        self,
        finished: tuple[Path, ReproduceReport, list[str]],
        copied: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        told = list[str]()
        for kind in ("baseline/baseline", "joint/exact", "frozen/exact-two-pass"):
            shutil.rmtree(copied / "runs" / kind / "seed-1")
        with monkeypatch.context() as during:
            during.setattr(reproduce_runs, "train", refusing(("baseline", 1)))
            report = run(copied, resume=True, watch=Watch(tell=told.append))
        assert [failure[:2] for failure in report.failures] == [
            ("baseline/baseline/seed-1", "LOSS_NOT_FINITE"),
            ("frozen/exact-two-pass/seed-1", "NO_BASELINE"),
        ]
        assert report.found == ("4 runs are compared",)
        assert report.lines()[-1].startswith("2 of 6 runs did not end; the same command with --re")
        assert report.as_json()["failures"][0]["message"] == "the loss is no number"
        assert "baseline: baseline, seed 1 (1 of 1, 6 in all): failed: LOSS_NOT_FINITE" in told
        assert json.loads((copied / MARK).read_text())["failures"].keys() == {
            "baseline/baseline/seed-1", "frozen/exact-two-pass/seed-1",
        }  # fmt: skip
        assert run(copied, resume=True).failures == ()
        assert results(copied) == results(finished[0])

    def test_a_process_that_died(self, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def dying(function: Any, items: Sequence[Any], **_: Any) -> Iterator[tuple[int, Any]]:
            yield from ((place, Died()) for place in range(len(items)))

        shutil.rmtree(copied / "runs" / PLACES[1])
        monkeypatch.setattr(reproduce_runs, "run_all", dying)
        ((name, code, message),) = run(copied, resume=True).failures
        assert (name, code) == (PLACES[1], "PROCESS_DIED")
        assert "smaller --jobs" in message

    def test_a_full_disk_stops_everything(
        self, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> Any:
            raise OutputError("DISK_FULL", "no room")

        shutil.rmtree(copied / "runs" / PLACES[1])
        monkeypatch.setattr(reproduce_runs, "train", full)
        with pytest.raises(OutputError, match="no room"):
            run(copied, resume=True, judge=never)

    def test_where_all_fail_nothing_is_evaluated(
        self, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.rmtree(copied / "runs")
        failing = [(name, seed) for name in ("baseline", "exact") for seed in (0, 1)]
        monkeypatch.setattr(reproduce_runs, "train", refusing(*failing))
        with pytest.raises(
            RunError, match=r"none of the 6 runs ended; baseline/baseline/seed-0 with LOSS"
        ):
            run(copied, resume=True, judge=never)


class TestRefusals:
    def test_another_plan_in_the_folder(
        self, finished: tuple[Path, ReproduceReport, list[str]]
    ) -> None:
        other = replace(PLAN, groups=PLAN.groups[:1])
        with pytest.raises(RunExists, match=r"another plan \(it differs in seeds, groups\)") as no:
            run(finished[0], other, seeds=1, resume=True)
        assert no.value.code == "PLAN_DIFFERS"
        changed = replace(PLAN.groups[1], settings={**TINY, "epochs": 2})
        with pytest.raises(RunExists, match=r"another plan \(it differs in groups\)"):
            run(
                finished[0],
                replace(PLAN, groups=(PLAN.groups[0], changed, PLAN.groups[2])),
                resume=True,
            )

    @pytest.mark.parametrize("name", ["notes.txt", "data"])
    def test_a_folder_of_something_else(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(RunExists, match=r"holds no reproduce\.json, so it is no reproduction"):
            run(tmp_path, resume=True)

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("")
        with pytest.raises(RunExists, match="--out names a file"):
            run(tmp_path / "out")

    @pytest.mark.parametrize("content", ["{", "{}", '{"encoding-type": "x"}', "[]"])
    def test_a_record_that_was_changed(self, tmp_path: Path, content: str) -> None:
        (tmp_path / MARK).write_text(content)
        with pytest.raises(RunError, match=r"reproduce\.json cannot be read") as refusal:
            run(tmp_path, resume=True)
        assert refusal.value.code == "RECORD_ALTERED"

    def test_no_room(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="MB are free") as refusal:
            run(tmp_path / "out", replace(PLAN, megabytes=1e12))
        assert refusal.value.code == "DISK_FULL"

    def test_no_patient_to_test_on(self, copied: Path, tmp_path: Path) -> None:
        real = RealScans(sources=DEMOS["brats18"].sources(copied / "phantoms"), key=KEY)
        untested = replace(PLAN, real_build=BUILD.model_copy(update={"test_fraction": 0.0}))
        with pytest.raises(DataError, match="test split has no labelled sample"):
            run(tmp_path / "out", untested, real=real)

    def test_a_network_that_cannot_be_built(self, copied: Path) -> None:
        (copied / PAGE).unlink()
        wrong = replace(
            PLAN, groups=(replace(PLAN.groups[0], settings={**TINY, "network": "resnet"}),)
        )
        record = json.loads((copied / MARK).read_text())
        record["plan"] = reproduce_module.identity(wrong, seeds=2, real=False)
        (copied / MARK).write_text(json.dumps(record))
        with pytest.raises(UsageError, match="no network 'resnet'"):
            run(copied, wrong, resume=True)


class TestEvaluating:
    def test_it_writes_the_page_and_says_what_it_says(
        self, finished: tuple[Path, ReproduceReport, list[str]], tmp_path: Path
    ) -> None:
        runs = [finished[0] / "runs" / place for place in (PLACES[0], PLACES[1])]
        config = EvaluateConfig(
            methods=("attention",), fills=(), verify=False, controls=False, resamples=20
        )
        said = evaluated(config, runs=runs, data=finished[0] / "data", out=tmp_path / "evaluation")
        assert "exact" in " ".join(said)
        page = (tmp_path / PAGE).read_text()
        assert all(sentence.split(",")[0] in html.unescape(page) for sentence in said)


class TestRealScans:
    def test_they_take_the_place_of_phantoms(self, copied: Path, tmp_path: Path) -> None:
        """The same scans with another key: other pseudonyms, the same number of pictures."""
        out, one = tmp_path / "out", replace(PLAN, groups=PLAN.groups[:1])
        scans = copied / "phantoms"
        real = RealScans(sources=DEMOS["brats18"].sources(scans), key=KEY)
        run(out, one, real=real, seeds=1)
        assert not (out / "phantoms").exists()
        counts = [
            json.loads((folder / "data/manifest.json").read_text())["counts"]["samples"]
            for folder in (out, copied)
        ]
        assert sum(counts[0].values()) == sum(counts[1].values()) > 0
        before = times(out)
        assert run(out, one, real=real, seeds=1).already_complete
        assert times(out) == before
        shutil.rmtree(next((scans / "HGG").iterdir()))
        with pytest.raises(RunExists, match="differs in inputs_sha256"):
            run(out, one, real=real, seeds=1, resume=True)
        with pytest.raises(RunExists, match="it differs in scans"):
            run(out, one, seeds=1, resume=True)
