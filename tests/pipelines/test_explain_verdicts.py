"""Every map comes with a verdict; what must not be believed is marked, what is missing is told."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.errors import ExplainerError
from models.explainers import EXPLAINERS, Explainer, SmoothGrad
from models.explainers.verify import Verification
from models.networks import Classifier
from models.records import Attribution, Verdict
from pipelines import explain_methods, explain_pictures
from pipelines.config import ExplainConfig
from pipelines.errors import MemoryShortError, UsageError
from pipelines.explain import explain
from pipelines.explain_methods import condemned, spread
from pipelines.explain_pictures import verdict_line
from pipelines.explain_report import ExplainReport
from tests.pipelines.conftest import MakeBlobs
from tests.pipelines.test_explain import read_map, table, train_run

FEW = ("attention", "gradcam", "cvx", "self-attention", "cam", "gradient-x-input")
QUIET: dict[str, Any] = {"overlays": False, "volumes": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken(Explainer):
    """A signed map that misses its law altogether; the second picture's holds NaN."""

    name = "broken"  # type: ignore[assignment]

    def explain(self, model: nn.Module, images: Tensor, target: Tensor) -> tuple[Attribution, ...]:
        values = images.mean(1) - 0.5
        values[1:, 0, 0] = torch.nan
        residual = torch.tensor([14.7, torch.nan, torch.inf, 0.0])[: len(images)]
        verdict = Verdict(word="refused", reason="completeness: 1470 % is missing; see 'deeplift'")
        return (
            Attribution(
                values=values,
                target=target,
                method=self.name,
                signed=True,
                residual=residual,
                law="completeness",
                verdicts=(verdict,) * len(images),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges(Explainer):
    """Shows the picture, whatever the model is; claims to be sound."""

    name = "edges"  # type: ignore[assignment]

    def explain(self, model: nn.Module, images: Tensor, target: Tensor) -> tuple[Attribution, ...]:
        verdicts = (Verdict(word="sound", reason="all is well"),) * len(images)
        return (
            Attribution(
                values=images.abs().mean(1),
                target=target,
                method=self.name,
                signed=False,
                verdicts=verdicts,
            ),
        )


@pytest.fixture(scope="module")
def run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(blobs, tmp_path_factory.mktemp("run") / "run", image_size=32)


def known(monkeypatch: pytest.MonkeyPatch, methods: Mapping[str, Explainer]) -> None:
    monkeypatch.setattr(explain_methods, "EXPLAINERS", methods)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def found(
    run: Path, blobs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExplainReport]:
    out = tmp_path_factory.mktemp("all") / "out"
    settings = ExplainConfig(methods=("all",), limit=3, gallery=3, volumes=False, batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        known(patch, {name: EXPLAINERS[name] for name in FEW})
        return out, explain(settings, run=run, out=out, data=blobs)


class TestAll:
    def test_every_method_that_fits_explains_every_scan(self, found: tuple) -> None:
        out, report = found
        methods = [row["method"] for row in table(out)]
        assert methods[:7] == [
            *("attention-fine", "attention-coarse", "gradcam", "cvx-fine", "cvx-coarse", "cam"),
            "gradient-x-input",
        ]
        assert methods == methods[:7] * 3
        parts = {(row["explainer"], row["level"]) for row in table(out)}
        assert {("cvx", "fine"), ("gradient-x-input", ""), ("gradcam", "")} < parts
        assert "3 scans explained by 7 maps each" in report.summary()

    def test_the_others_are_told_with_their_reason(self, found: tuple) -> None:
        out, report = found
        assert set(report.left_out) == {"self-attention"}
        assert "no vision transformer" in report.as_json()["left_out"]["self-attention"]
        assert "the network cannot be explained by self-attention" in report.summary()
        assert (
            "Methods that this network cannot be explained by" in (out / "index.html").read_text()
        )

    def test_verdict_reason_law_and_residual_stand_everywhere(self, found: tuple) -> None:
        out, _ = found
        rows = {row["method"]: row for row in table(out)}
        assert rows["cam"]["verdict"] == "sound"
        assert rows["cam"]["law"] == "mean"
        assert float(rows["cam"]["residual"]) < 1e-3
        assert rows["gradcam"]["verdict"] == rows["gradcam"]["residual"] == ""
        assert rows["gradcam"]["verdict_reason"] == "not checked: the method has no law"
        doubtful = rows["gradient-x-input"]
        assert doubtful["verdict"] in ("doubtful", "refused")
        page = (out / "index.html").read_text()
        assert "flat: it points nowhere" in page  # of one epoch's attention
        reason = doubtful["verdict_reason"].replace("'", "&#39;")
        assert f"Verdict: {doubtful['verdict']}, {reason}" in page

    def test_the_gallery_shows_cases_of_every_class(self, found: tuple) -> None:
        out, _ = found
        page = (out / "gallery.html").read_text()
        assert page.count('<td class="case"') == 3
        assert all(f"true: {kind}" in page for kind in ("normal", "mild", "severe"))
        assert (out / "gallery.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "gallery.svg").read_bytes().startswith(b"<svg ")
        assert 'href="gallery.html"' in (out / "index.html").read_text()

    def test_maps_keep_their_sign(self, found: tuple) -> None:
        out, _ = found
        signed = {row["method"]: row["signed"] for row in table(out)}
        assert (signed["cam"], signed["attention-fine"]) == ("True", "False")
        cams = [read_map(out, row) for row in table(out) if row["method"] == "cam"]
        assert min(values.min() for values in cams) < 0

    def test_a_named_method_that_cannot_is_an_error(
        self, run: Path, blobs: Path, tmp_path: Path
    ) -> None:
        settings = ExplainConfig(methods=("gradcam", "self-attention"))
        with pytest.raises(UsageError, match="self-attention: the model is no vision transf") as e:
            explain(settings, run=run, out=tmp_path / "out", data=blobs)
        assert e.value.code == "NO_SELF_ATTENTION"
        assert not (tmp_path / "out").exists()


class TestRefusedMaps:
    @pytest.fixture
    def words(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> list[Any]:
        known(monkeypatch, {"broken": Broken()})
        drawn: list[Any] = []
        overlay = explain_pictures.figures.overlay

        def recorded(*arguments: Any, **options: Any) -> bytes:
            drawn.append((options.get("word"), options.get("caption")))
            return overlay(*arguments, **options)

        monkeypatch.setattr(explain_pictures.figures, "overlay", recorded)
        settings = ExplainConfig(methods=("broken",), limit=3, volumes=False)
        self.report = explain(settings, run=run, out=tmp_path / "out", data=blobs)
        return drawn

    def test_they_are_shown_marked(self, words: list[Any], tmp_path: Path) -> None:
        assert [word for word, _ in words] == [None, "refused"] * 3
        assert words[1][1] == "completeness: 1.5e+03 % off"
        assert words[3][1] == "completeness: not a number"
        assert "3 of 3 maps refused" in self.report.summary()
        page = (tmp_path / "out" / "gallery.html").read_text()
        assert page.count('class="word refused"') == 3

    def test_what_is_no_number_is_written_as_a_word(self, words: list[Any], tmp_path: Path) -> None:
        rows = table(tmp_path / "out")
        assert [row["residual"] for row in rows] == ["14.699999809265137", "nan", "infinite"]
        assert rows[0]["verdict_reason"].startswith("completeness: 1470 %")
        assert rows[1]["verdict_reason"].startswith("the map holds NaN or infinity")
        assert np.isfinite(read_map(tmp_path / "out", rows[1])).all()
        assert self.report.as_json()["explanations"][2]["residual"] == "infinite"


class TestVerify:
    def test_each_method_is_held_against_random_weights(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known(monkeypatch, {"gradient": EXPLAINERS["gradient"], "edges": Edges()})
        settings = ExplainConfig(methods=("all",), verify=True, limit=3, volumes=False)
        report = explain(settings, run=run, out=tmp_path / "out", data=blobs)
        good, bad = rows_of(tmp_path / "out" / "verification.csv")
        assert (good["method"], bad["method"]) == ("gradient", "edges")
        assert float(bad["randomised_similarity"]) == pytest.approx(1)
        assert float(good["randomised_similarity"]) < 0.5
        assert float(bad["random_similarity"]) < 0.9
        assert (good["verdict"], bad["verdict"]) == ("sound", "refused")
        assert [row["method"] for row in report.as_json()["verification"]] == ["gradient", "edges"]
        page = (tmp_path / "out" / "index.html").read_text()
        assert "Does the method explain this model?" in page
        assert "check: REFUSED" in (tmp_path / "out" / "gallery.html").read_text()

    def test_maps_of_a_method_that_failed_are_refused(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known(monkeypatch, {"edges": Edges()})
        for verify, word in ((False, "sound"), (True, "refused")):
            out = tmp_path / word
            settings = ExplainConfig(methods=("edges",), verify=verify, limit=2, **QUIET)
            explain(settings, run=run, out=out, data=blobs)
            assert {row["verdict"] for row in table(out)} == {word}
        assert table(out)[0]["verdict_reason"].startswith("the method failed its check")

    def test_a_check_that_cannot_be_made(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any, **__: Any) -> Verification:
            raise ExplainerError("MODEL_FAILS", "the weights do not fit")

        monkeypatch.setattr(explain_methods, "verify", failing)
        settings = ExplainConfig(methods=("gradcam",), verify=True, limit=2, **QUIET)
        explain(settings, run=run, out=tmp_path / "out", data=blobs)
        (row,) = rows_of(tmp_path / "out" / "verification.csv")
        assert (row["verdict"], row["randomised_similarity"]) == ("doubtful", "")
        assert row["reason"] == "the check could not be made: the weights do not fit"

    def test_only_weights_and_noise_condemn_all_maps(self) -> None:
        def found(similarity: float, repeat: float, verdict: Any = "refused") -> Verification:
            return Verification(
                method="m",
                randomised_similarity=similarity,
                random_similarity=0.1,
                repeat_difference=repeat,
                law_residual=9.0,
                verdict=verdict,
                reason="why",
            )

        assert condemned(None) == condemned(found(0.1, 0.1)) == ""
        assert condemned(found(0.95, 0.1)) == condemned(found(0.1, 1.5)) == "why"
        assert condemned(found(0.95, 0.1, "doubtful")) == ""


class TestBatches:
    def test_the_network_never_sees_more_than_a_batch(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        forward = Classifier.forward

        def recorded(network: Classifier, images: Tensor) -> Any:
            sizes.append(len(images))
            return forward(network, images)

        monkeypatch.setattr(Classifier, "forward", recorded)
        few = {"gradcam": EXPLAINERS["gradcam"], "smoothgrad": SmoothGrad(draws=3)}
        known(monkeypatch, few)
        settings = ExplainConfig(methods=("all",), batch_size=2, verify=True, limit=3, **QUIET)
        explain(settings, run=run, out=tmp_path / "out", data=blobs)
        assert max(sizes) == 2

    def test_progress_counts_maps_and_scans_and_no_batch_is_made_twice(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        told: list[tuple[str, int, int]] = []

        @dataclass(frozen=True, slots=True, kw_only=True)
        class Counting(Edges):
            def explain(self, model: nn.Module, images: Tensor, target: Tensor) -> Any:
                calls.append(len(images))
                return Edges.explain(self, model, images, target)

        known(monkeypatch, {"edges": Counting()})
        settings = ExplainConfig(methods=("edges",), batch_size=4, **QUIET)
        explain(
            settings,
            run=run,
            out=tmp_path / "out",
            data=blobs,
            progress=lambda stage, done, total: told.append((stage, done, total)),
        )
        assert calls == [4, 2]
        assert [item for item in told if item[0] == "maps"] == [("maps", 4, 6), ("maps", 6, 6)]
        assert ("explaining", 6, 6) in told
        assert told[0] == ("methods", 1, 1)

    def test_memory_that_runs_out_names_the_way_out(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @dataclass(frozen=True, slots=True, kw_only=True)
        class Hungry(Edges):
            def explain(self, model: nn.Module, images: Tensor, target: Tensor) -> Any:
                raise torch.OutOfMemoryError("CUDA out of memory")

        known(monkeypatch, {"edges": Hungry()})
        with pytest.raises(MemoryShortError, match="explained 8 pictures at once: lower --batch-s"):
            explain(ExplainConfig(methods=("all",)), run=run, out=tmp_path / "out", data=blobs)

    def test_maps_finer_than_the_mask_are_measured_at_its_size(
        self, run: Path, make_blobs: MakeBlobs, tmp_path: Path
    ) -> None:
        data = make_blobs(size=32)
        fine = train_run(data, tmp_path / "run", image_size=64)
        settings = ExplainConfig(methods=("gradient-x-input",), **QUIET)
        explain(settings, run=fine, out=tmp_path / "out", data=data)
        rows = [row for row in table(tmp_path / "out") if row["label"] != "normal"]
        assert read_map(tmp_path / "out", rows[0]).shape == (64, 64)
        assert all(0 < float(row["average_precision"]) <= 1 for row in rows)


class TestExport:
    class Nowhere:
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def write(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError

    def test_a_data_set_has_no_series(self, run: Path, blobs: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="name it with --dicom-dir, with a run that was tr"):
            explain(
                ExplainConfig(),
                run=run,
                out=tmp_path / "out",
                data=blobs,
                export=self.Nowhere(tmp_path / "dicom"),
            )


def test_spread_takes_both_ends() -> None:
    assert list(spread(3, 8)) == [0, 1, 2]
    assert list(spread(9, 3)) == [0, 4, 8]
    assert list(spread(9, 1)) == [0]
    assert list(spread(9, 0)) == []


def test_a_verdict_reads_as_a_sentence() -> None:
    assert verdict_line("doubtful", "mean: 3 % off") == "Verdict: doubtful, mean: 3 % off"
    assert verdict_line("", "not checked: no law") == "Not checked: no law"
