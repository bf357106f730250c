"""What the tables and the figure of a comparison say, and where they say nothing."""

from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines import comparison_figure, comparison_table
from pipelines.comparison_measures import DISTANCE, UNIFORM, RunScores, Truth
from pipelines.comparison_scores import MeanScore, differences, score_variants
from pipelines.comparison_table import Comparison, Failure

FINE, BLOCK = "average_precision_fine", "average_precision_block2"


def run_of(variant: str, seed: int, *, seconds: float = 1.0, **maps: np.ndarray) -> RunScores:
    rng = np.random.default_rng([seed, len(variant)])
    return RunScores(
        variant=variant,
        seed=seed,
        probabilities=rng.dirichlet((1, 1), 20),
        maps=maps,
        parameters=1234567,
        seconds_per_epoch=seconds,
        epochs=3,
        best_epoch=2,
    )


@pytest.fixture(scope="module")
def found() -> Comparison:
    """A baseline without maps, one with maps of which a seed failed, and one that failed."""
    truth = Truth(labels=np.arange(20) % 2, subject_ids=tuple(f"p{i // 2}" for i in range(20)))
    ones = np.ones(20)
    maps = {BLOCK: 0.3 * ones, FINE: 0.4 * ones, UNIFORM: 0.1 * ones, DISTANCE: 2e-8 * ones}
    runs = [
        run_of("baseline", 0, seconds=1.0, **{UNIFORM: 0.1 * ones}),
        run_of("baseline", 1, seconds=3.0, **{UNIFORM: 0.1 * ones}),
        run_of("exact", 1, **maps),
    ]
    scores = score_variants(truth, runs, resamples=30)
    failures = (
        Failure(variant="exact", seed=0, code="LOSS_NOT_FINITE", message="no number"),
        Failure(variant="dual", seed=0, code="PROCESS_DIED", message="gone"),
        Failure(variant="dual", seed=1, code="PROCESS_DIED", message="gone"),
    )
    return Comparison(
        title="net_1 on data",
        variants=("baseline", "exact", "dual"),
        runs=tuple(runs),
        failures=failures,
        scores=scores,
        differences=tuple(differences(scores, against="baseline")),
        samples=20,
        patients=10,
        resamples=30,
        notes=("A note & more.",),
    )


class TestTables:
    def test_what_a_variant_has_not_is_empty_and_never_a_number(self, found: Comparison) -> None:
        baseline, exact, dual = comparison_table.variant_rows(found)
        assert list(baseline) == list(exact) == list(dual)
        assert baseline[FINE] == baseline[f"{FINE}_low"] == baseline[DISTANCE] == ""
        assert exact[FINE] == pytest.approx(0.4)
        assert exact[f"{FINE}_sd"] == ""  # one seed has no spread
        assert {dual[name] for name in dual} == {"dual", 0, 2, "PROCESS_DIED", ""}

    def test_spread_over_seeds(self, found: Comparison) -> None:
        baseline, exact, _ = comparison_table.variant_rows(found)
        assert (baseline["runs"], baseline["failed"], baseline["errors"]) == (2, 0, "")
        assert (exact["runs"], exact["failed"], exact["errors"]) == (1, 1, "LOSS_NOT_FINITE")
        assert baseline["seconds_per_epoch"] == 2.0
        assert baseline["seconds_per_epoch_sd"] == pytest.approx(2**0.5)
        values = [row["accuracy"] for row in comparison_table.run_rows(found)[:2]]
        assert baseline["accuracy"] == pytest.approx(np.mean(np.array(values, dtype=float)))

    def test_each_run_has_a_row_the_failed_too(self, found: Comparison) -> None:
        rows = comparison_table.run_rows(found)
        assert [(row["variant"], row["seed"], row["error"]) for row in rows] == [
            ("baseline", 0, ""),
            ("baseline", 1, ""),
            ("exact", 1, ""),
            ("exact", 0, "LOSS_NOT_FINITE"),
            ("dual", 0, "PROCESS_DIED"),
            ("dual", 1, "PROCESS_DIED"),
        ]
        assert rows[3]["accuracy"] == ""
        assert rows[2]["parameters"] == 1234567
        assert len({tuple(row) for row in rows}) == 1

    def test_levels_stand_finest_first(self, found: Comparison) -> None:
        names = [name for name in found.measures if name not in ("accuracy", "balanced_accuracy")]
        assert names == ["auc", "calibration_error", BLOCK, FINE, UNIFORM, DISTANCE]

    @pytest.mark.parametrize(
        ("of_variants", "expected"),
        [
            ((["coarse"], ["fine"]), ["fine", "coarse"]),
            ((["coarse"], ["fine", "coarse", "bottleneck"]), ["fine", "coarse", "bottleneck"]),
            ((["fine", "coarse"], ["block2", "fine", "coarse"]), ["block2", "fine", "coarse"]),
            (([], ["self-attention"]), ["self-attention"]),
        ],
    )
    def test_the_chain_tells_the_order_of_levels(
        self, of_variants: tuple[list[str], ...], expected: list[str]
    ) -> None:
        score = MeanScore(values=(0.5,), mean=0.5, sd=0.0, low=0.5, high=0.5, drawn=np.zeros(0))
        scores = {
            str(i): {f"average_precision_{name}": score for name in (*names, "uniform")}
            for i, names in enumerate(of_variants)
        }
        several = Comparison(
            title="t",
            variants=tuple(scores),
            runs=(),
            failures=(),
            scores=scores,
            differences=(),
            samples=1,
            patients=1,
            resamples=0,
        )
        wanted = [f"average_precision_{name}" for name in (*expected, "uniform")]
        assert list(several.measures) == wanted

    def test_differences_name_variant_reference_and_measure(self, found: Comparison) -> None:
        rows = comparison_table.difference_rows(found)
        assert {(row["variant"], row["against"]) for row in rows} == {("exact", "baseline")}
        assert {str(row["measure"]) for row in rows} >= {"accuracy", "auc"}
        for row in rows:
            assert float(row["low"]) <= float(row["high"])
            assert 0 < float(row["p"]) <= float(row["p_holm"]) <= 1


class TestSpread:
    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ((0.5, 0.02, 0.4, 0.6), "0.500 ± 0.020 (0.400 to 0.600)"),
            ((0.5, np.nan, 0.4, 0.6), "0.500 (0.400 to 0.600)"),
            ((0.5, 0.02, np.nan, np.nan), "0.500 ± 0.020"),
            ((2e-8, 1e-9, 1e-8, 3e-8), "2.0e-08 ± 1.0e-09 (1.0e-08 to 3.0e-08)"),
            ((0.0, 0.0, 0.0, 0.0), "0.000 ± 0.000 (0.000 to 0.000)"),
            ((np.nan, np.nan, np.nan, np.nan), ""),
        ],
    )
    def test_what_is_known_is_written(self, values: tuple, text: str) -> None:
        mean, sd, low, high = values
        score = MeanScore(values=(mean,), mean=mean, sd=sd, low=low, high=high, drawn=np.zeros(0))
        assert comparison_table.spread(score) == text

    def test_nothing_where_there_is_no_score(self) -> None:
        assert comparison_table.spread(None) == ""


class TestPages:
    def test_markdown_tells_everything_once(self, found: Comparison) -> None:
        text = comparison_table.markdown(found)
        assert text.startswith("# net_1 on data\n\n## Predictions\n")
        assert "| exact | 1 (1 failed: LOSS_NOT_FINITE) | 1,234,567 | 1.00 |" in text
        assert "| dual | 0 (2 failed: PROCESS_DIED) |  |  |  |  |  |  |" in text
        assert "| exact | 0.300 (0.300 to 0.300) | 0.400 (0.400 to 0.400) | 2.0e-08" in text
        assert "A uniform map has an average precision of 0.100" in text
        assert "## Differences from baseline" in text
        assert "- exact, seed 0: LOSS_NOT_FINITE: no number" in text
        assert "20 test samples of 10 patients; 30 resamples" in text
        assert "but for: calibration error, distance between levels." in text
        widths = {line.count("|") for line in text.split("## Maps")[0].splitlines() if "|" in line}
        assert len(widths) == 1

    def test_latex_escapes_names(self, found: Comparison) -> None:
        text = comparison_table.latex(found)
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 2 * 4
        assert any(r"LOSS\_NOT\_FINITE" in row for row in rows)
        assert any(r"$\pm$" in row for row in rows)
        assert not any("±" in row for row in rows)
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2

    def test_without_maps_there_is_no_table_of_them(self) -> None:
        truth = Truth(labels=np.arange(20) % 2, subject_ids=tuple(f"p{i}" for i in range(20)))
        runs = [run_of("baseline", 0)]
        bare = Comparison(
            title="t",
            variants=("baseline",),
            runs=tuple(runs),
            failures=(),
            scores=score_variants(truth, runs, resamples=0),
            differences=(),
            samples=20,
            patients=20,
            resamples=0,
        )
        text = comparison_table.markdown(bare)
        assert "## Maps" not in text
        assert "Differences" not in text
        assert "uniform" not in text
        assert comparison_figure.draw(bare)["png"]


class TestFigure:
    def test_same_input_same_bytes_in_both_formats(self, found: Comparison) -> None:
        drawn = comparison_figure.draw(found)
        assert drawn["png"].startswith(b"\x89PNG")
        assert drawn == comparison_figure.draw(found)

    def test_svg_is_drawn_with_words_and_no_date(self, found: Comparison) -> None:
        svg = comparison_figure.draw(found)["svg"].decode("utf-8")
        root = ElementTree.fromstring(svg)
        words = "".join(root.itertext())
        for word in ("baseline", "exact", "dual", "calibration error", "one seed"):
            assert word in words
        assert "dc:date" not in svg
