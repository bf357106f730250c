"""Plans of reproductions: what they hold, how they are restricted, what they will ask for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from models.attention import ATTENTIONS
from pipelines import reproduce_console
from pipelines import run as run_files
from pipelines.assemble import network_for
from pipelines.config import ConfigError, TrainConfig
from pipelines.errors import UsageError
from pipelines.forecast import OPTIMIZER_COPIES
from pipelines.recipes import RECIPES
from pipelines.reproduce_choices import ReproduceReport
from pipelines.reproduce_console import (
    ReproduceChoices,
    plan_of,
    reproduce_and_tell,
    sources_of,
)
from pipelines.reproduce_forecast import (
    RUN_FILES,
    attack_passes,
    forecast_plan,
    passes_of,
    plan_bytes,
    summary_of,
)
from pipelines.reproduce_groups import BASELINE, EVERY, EXACT, PAPER, STANDARD
from pipelines.reproduce_plans import PLANS, planned, restricted
from pipelines.reproduce_records import differing, identity
from pipelines.reproduce_runs import runs_of
from pipelines.robust import robust_of
from tests.pipelines.test_reproduce import PLAN

KINDS = [(name, size) for name, sizes in PLANS.items() for size in sizes]
WITH_GATES = [kind for kind in KINDS if kind[0] != "chestxray14"]
"""Plans of the paper on consistent attention."""


@pytest.mark.parametrize(("dataset", "size"), KINDS)
class TestEveryPlan:
    def test_can_be_built(self, dataset: str, size: str) -> None:
        """Every network for the pictures of phantoms and of real scans; costs no memory."""
        plan = planned(dataset, size)
        phantoms, scans = (summary_of(plan, real=real) for real in (False, True))
        assert phantoms.classes == RECIPES[dataset].classes
        for summary in [phantoms] if scans == phantoms else [phantoms, scans]:
            for group in plan.groups:
                for variant in group.variants:
                    with torch.device("meta"):
                        network = network_for(group.training(variant, 0), summary)
                    gated = variant != BASELINE
                    assert bool(network.map_names) == gated or group.name == "vit"

    def test_robust_objectives_are_the_baselines_recipe_but_for_themselves(
        self, dataset: str, size: str
    ) -> None:
        plan = planned(dataset, size)
        robust = {group.objective: group for group in plan.groups if group.objective != STANDARD}
        assert {"l1", "pgd"} <= set(robust)
        (base,) = [group.training(BASELINE, 1) for group in plan.groups if group.name == BASELINE]
        for objective, group in robust.items():
            trained = group.training(BASELINE, 1)
            assert group.called(BASELINE) == f"robust-{objective}"
            assert robust_of(trained, (32, 32)).active
            changes = {"objective": base.objective, "robust": base.robust}
            assert trained.model_copy(update=changes) == base
        assert plan.evaluate.robustness.enabled

    def test_phantoms_are_called_phantoms(self, dataset: str, size: str) -> None:
        plan = planned(dataset, size)
        assert plan.judged(real=False).synthetic
        assert not plan.judged(real=True).synthetic


@pytest.mark.parametrize(("dataset", "size"), WITH_GATES)
class TestPlansOfConsistentAttention:
    def test_attention_is_trained_robustly_too(self, dataset: str, size: str) -> None:
        names = planned(dataset, size).names
        assert {"pyramid", "exact-l1", "robust-elastic", "robust-group"} <= set(names)

    def test_holds_the_papers_protocol(self, dataset: str, size: str) -> None:
        groups = {group.name: group for group in planned(dataset, size).groups}
        frozen = groups["frozen"]
        assert frozen.variants == (*PAPER, *EXACT)
        assert frozen.training("dual", 0).freeze_trunk
        assert frozen.start == BASELINE
        base, joint = groups[BASELINE].training(BASELINE, 3), groups["joint"].training("dual", 3)
        assert base.seed == joint.seed == 3
        assert not joint.freeze_trunk
        assert base.network == joint.network == frozen.training("dual", 0).network
        assert groups["vit"].training(BASELINE, 0).network.startswith("vit")

    def test_says_what_it_leaves_out(self, dataset: str, size: str) -> None:
        plan = planned(dataset, size)
        (joint,) = [group for group in plan.groups if group.name == "joint"]
        missing = [name for name in EVERY if name not in joint.variants]
        told = " ".join(plan.left_out)
        assert all(name in told for name in missing)
        assert bool(plan.left_out) == (size == "small")

    def test_begins_with_what_others_start_from(self, dataset: str, size: str) -> None:
        first, rest = runs_of(planned(dataset, size), seeds=2, data=Path("d"), out=Path("r"))
        assert [run.place for run in first] == [
            "baseline/baseline/seed-0",
            "baseline/baseline/seed-1",
        ]
        for run in rest:
            seed, source = run.member.settings.seed, run.member.start.source
            frozen = run.group == "frozen"
            assert source == (Path(f"r/baseline/baseline/seed-{seed}") if frozen else None)
        seeds = [run.member.settings.seed for run in rest]
        assert seeds == sorted(seeds)


class TestNames:
    def test_a_plan_that_is_not_there(self) -> None:
        with pytest.raises(
            UsageError, match=r"data set to reproduce 'brats'; did you mean 'brats18'"
        ):
            planned("brats", "small")
        with pytest.raises(UsageError, match=r"no --size 'smal'; did you mean 'small'"):
            planned("brats18", "smal")

    def test_baseline_is_the_only_variant_without_gates(self) -> None:
        assert set(EVERY) | {BASELINE} == set(ATTENTIONS)

    def test_restricted_to_some(self) -> None:
        found = restricted(planned("brats18", "small"), names=("exact", "dual"), subjects=20)
        assert {group.name: group.variants for group in found.groups} == {
            "baseline": ("baseline",), "joint": ("dual", "exact"), "frozen": ("dual", "exact"),
        }  # fmt: skip
        assert found.subjects == 20
        assert found.left_out[-1].startswith("not trained, as asked for: fine, coarse")
        assert found.left_out[-1].endswith("robust-pgd")

    def test_restricted_to_a_baseline_of_another_network(self) -> None:
        found = restricted(planned("brats18", "small"), names=("vit",))
        assert [group.name for group in found.groups] == ["baseline", "vit"]

    def test_restricted_to_nothing_new(self) -> None:
        plan = planned("fdg-pet", "full")
        assert restricted(plan) is plan

    def test_a_variant_that_is_not_planned(self) -> None:
        with pytest.raises(UsageError, match=r"no run in this plan 'exat'; did you mean 'exact'"):
            restricted(planned("fdg-pet", "small"), names=("exat",))
        with pytest.raises(UsageError, match="no run in this plan 'chain-factored'"):
            restricted(planned("fdg-pet", "small"), names=("chain-factored",))

    def test_too_few_patients(self) -> None:
        with pytest.raises(UsageError, match="--subjects is 11: too few"):
            restricted(planned("fdg-pet", "small"), subjects=11)


class TestIdentity:
    def test_it_differs_with_whatever_changes_a_result(self) -> None:
        plan = planned("brats18", "small")
        base = identity(plan, seeds=5, real=False)
        longer = replace(plan.groups[0], settings={**plan.groups[0].settings, "epochs": 7})
        others = [
            identity(plan, seeds=4, real=False),
            identity(plan, seeds=5, real=True),
            identity(replace(plan, subjects=161), seeds=5, real=False),
            identity(replace(plan, phantoms={}), seeds=5, real=False),
            identity(replace(plan, groups=(longer, *plan.groups[1:])), seeds=5, real=False),
            identity(restricted(plan, names=("exact",)), seeds=5, real=False),
            identity(planned("fdg-pet", "small"), seeds=5, real=False),
        ]
        assert all(other != base for other in others)
        assert identity(planned("brats18", "small"), seeds=5, real=False) == base

    def test_only_seeds_groups_and_variants_may_grow(self) -> None:
        plan = planned("brats18", "small")
        few = identity(restricted(plan, names=("exact",)), seeds=2, real=False)
        some = identity(restricted(plan, names=("exact", "dual", "vit")), seeds=3, real=False)
        assert differing(few, few) == differing(few, some) == []
        assert differing(some, few) == ["seeds", "groups"]
        groups = dict(some["groups"])
        groups["joint"] = {**groups["joint"], "start": "baseline"}
        assert differing(some, {**some, "groups": groups}) == ["groups"]
        assert differing(few, {**some, "size": "full", "code_version": "x"}) == [
            "size",
            "code_version",
        ]

    def test_boxes_are_part_of_it(self) -> None:
        plan = planned("chestxray14", "small")
        assert plan.boxes is not None
        other = replace(plan, boxes=replace(plan.boxes, attacks=()))
        found = [identity(each, seeds=1, real=False) for each in (plan, other)]
        assert differing(*found) == ["boxes"]


class TestForecast:
    @pytest.mark.parametrize(
        ("changes", "passes"),
        [
            ({}, 1),
            ({"objective": "l1"}, 2),
            ({"objective": "l1", "robust": {"weight": 0.5}}, 3),
            ({"objective": "l1", "robust": {"radius": 0.0}}, 1),
            ({"objective": "pgd", "robust": {"weight": 0.5}}, 9),
            ({"objective": "l1-penalty"}, 3),
        ],
    )
    def test_robust_objectives_take_their_passes(
        self, changes: dict[str, Any], passes: int
    ) -> None:
        assert passes_of(TrainConfig.of(changes)) == passes

    def test_attacks_take_theirs(self) -> None:
        settings = planned("chestxray14", "small").evaluate.robustness
        assert attack_passes(settings) > attack_passes(settings.model_copy(update={"steps": 1})) > 0
        assert attack_passes(settings.model_copy(update={"enabled": False})) == 0

    def test_disk_is_that_of_weights_and_of_checkpoints_at_work(self) -> None:
        summary = summary_of(PLAN, real=False)
        settings = TrainConfig(network="resnet10-narrow", variant="exact", image_size=32)
        network = network_for(settings, summary)
        state = sum(v.numel() * v.element_size() for v in network.state_dict().values())
        learning = 4 * sum(v.numel() for v in network.parameters())
        working = 2 * (2 * state + OPTIMIZER_COPIES["adamw"] * learning)
        seeds = [settings.model_copy(update={"seed": seed}) for seed in range(3)]
        assert plan_bytes(seeds, summary, 2) == 3 * (state + RUN_FILES) + 2 * working
        assert plan_bytes([], summary, 2) == 0

    def test_it_grows_with_the_work_and_not_with_the_jobs(self) -> None:
        one = forecast_plan(PLAN, seeds=1, jobs=1, real=False)
        two = forecast_plan(PLAN, seeds=2, jobs=1, real=False)
        assert (one.runs, two.runs, one.pictures) == (3, 6, 12)
        assert one.disk_bytes < two.disk_bytes
        assert one.groups == {
            "baseline": ("baseline",),
            "joint": ("exact",),
            "frozen": ("exact-two-pass",),
        }
        assert min(one.training_seconds, one.evaluation_seconds, one.scan_seconds) > 0
        assert one.as_json()["left_out"] == ()

    def test_real_scans_are_not_made(self) -> None:
        found = forecast_plan(PLAN, seeds=1, jobs=1, real=True)
        assert found.scan_seconds == 0
        assert found.lines()[0].startswith("scans: those given")

    @pytest.mark.parametrize(
        ("seconds", "said"), [(1.0, "1 min"), (600.0, "10 min"), (9e3, "2.5 h")]
    )
    def test_time_in_words(self, seconds: float, said: str) -> None:
        found = replace(forecast_plan(PLAN, seeds=1, jobs=1, real=True), training_seconds=seconds)
        assert found.lines()[4].endswith(f"1 at a time: about {said}")


def choices(tmp_path: Path, **changes: Any) -> ReproduceChoices:
    return ReproduceChoices(**{"dataset": "fdg-pet", "out": tmp_path / "out", **changes})


class TestChoices:
    def test_size_follows_the_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for there, size in ((True, "full"), (False, "small")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
            assert plan_of(choices(tmp_path)).size == size
        assert plan_of(choices(tmp_path, size="full")).size == "full"

    def test_variants_by_name(self, tmp_path: Path) -> None:
        plan = plan_of(choices(tmp_path, size="small", variants="exact, vit,"))
        assert plan.names == ("baseline", "exact", "vit")

    def test_synthetic_patients_or_real_ones(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--subjects is a number of synthetic patients"):
            plan_of(choices(tmp_path, subjects=20, dicom_dir=tmp_path))

    def test_real_scans(self, tmp_path: Path) -> None:
        assert sources_of(choices(tmp_path)) is None
        found = sources_of(choices(tmp_path, dicom_dir=tmp_path, labels=tmp_path / "labels.csv"))
        assert (found.dicom_dir, found.labels, found.truth) == (
            tmp_path, tmp_path / "labels.csv", None,
        )  # fmt: skip
        assert sources_of(choices(tmp_path, dataset="brats18", root=tmp_path)).root == tmp_path

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"root": "."}, r"fdg-pet takes real scans by --dicom-dir, --labels.* not by --root"),
            ({"dataset": "brats18", "dicom_dir": "."}, "by --root and not by --dicom-dir"),
            ({"labels": "labels.csv"}, "name their --dicom-dir"),
            ({"dicom_dir": "."}, "name a table of PatientID and label with --labels"),
        ],
    )
    def test_scans_that_do_not_fit(
        self, tmp_path: Path, changes: dict[str, str], message: str
    ) -> None:
        given = {
            name: value if name == "dataset" else Path(value) for name, value in changes.items()
        }
        with pytest.raises(UsageError, match=message):
            sources_of(choices(tmp_path, **given))

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"--root .* does not exist"):
            sources_of(choices(tmp_path, dataset="brats18", root=tmp_path / "nothing"))

    def test_settings_of_the_data_set_are_for_real_scans(self, tmp_path: Path) -> None:
        wanted = {"dataset": "chestxray14", "size": "small", "pairs": ("image_size=64",)}
        found = plan_of(choices(tmp_path, root=tmp_path, **wanted))
        assert found.real_build.model_dump()["image_size"] == 64
        assert found.real_build.seed == planned("chestxray14", "small").real_build.seed
        file = tmp_path / "build.yaml"
        file.write_text("image_size: 96\ntest_fraction: 0.3\n")
        both = plan_of(choices(tmp_path, root=tmp_path, config=file, **wanted)).real_build
        assert (both.model_dump()["image_size"], both.test_fraction) == (64, 0.3)
        with pytest.raises(UsageError, match="say how real scans are built, and none") as refusal:
            plan_of(choices(tmp_path, **wanted))
        assert refusal.value.code == "BUILD_SETTINGS_GIVEN"
        with pytest.raises(ConfigError, match="image_sise"):
            plan_of(choices(tmp_path, root=tmp_path, **{**wanted, "pairs": ("image_sise=64",)}))


class TestTelling:
    def test_a_dry_run_writes_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reproduce_console, "plan_of", lambda _: PLAN)
        reproduce_and_tell(choices(tmp_path, dry_run=True, as_json=True, seeds=2))
        said = capsys.readouterr()
        assert "joint: 1 x 2 runs (exact)" in said.err
        assert said.err.endswith("dry run: nothing was written\n")
        assert '"runs": 6' in said.out
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("failed", [False, True])
    def test_the_report_comes_last(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        failed: bool,
    ) -> None:
        failures = (("joint/exact/seed-0", "LOSS_NOT_FINITE", "no number"),) if failed else ()
        report = ReproduceReport(
            page=tmp_path / "report.html", runs=6, found=("Maps hold.",), failures=failures
        )
        asked: dict[str, Any] = {}

        def stand_in(plan: Any, **others: Any) -> ReproduceReport:
            asked.update(others, plan=plan)
            return report

        monkeypatch.setattr(reproduce_console, "reproduce", stand_in)
        wanted = choices(tmp_path, size="small", seeds=3, jobs=2, resume=True, as_json=True)
        if failed:
            with pytest.raises(typer.Exit) as ended:
                reproduce_and_tell(wanted)
            assert ended.value.exit_code == 1
        else:
            reproduce_and_tell(wanted)
        said = capsys.readouterr()
        assert said.err.splitlines()[0] == "Maps hold."
        assert said.err.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
        assert ("LOSS_NOT_FINITE" in said.err) == failed
        assert '"already_complete": false' in said.out
        assert (asked["seeds"], asked["effort"].jobs, asked["resume"]) == (3, 2, True)
        assert asked["real"] is None

    def test_real_scans_take_the_users_own_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: dict[str, Any] = {}

        def stand_in(plan: Any, **others: Any) -> ReproduceReport:
            asked.update(others)
            return ReproduceReport(page=tmp_path / "x", runs=1, found=(), failures=())

        monkeypatch.setattr(reproduce_console, "reproduce", stand_in)
        key = tmp_path / "key"
        reproduce_and_tell(
            choices(tmp_path, dataset="brats18", size="small", root=tmp_path, key=key)
        )
        assert asked["real"].sources.root == tmp_path
        assert len(asked["real"].key) >= 16
        assert key.exists()
        assert not (tmp_path / run_files.SEAL).exists()
