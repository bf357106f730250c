"""What the tables of an evaluation say, and where they say nothing."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest

from pipelines.comparison_scores import MeanScore
from pipelines.evaluation_cells import (
    bare,
    best_mean,
    number,
    published_text,
    score_cell,
    score_text,
    signed,
)
from pipelines.evaluation_measures import WORDS, higher_is_better, source_of, title_of, words_of
from pipelines.evaluation_records import Evaluation
from pipelines.evaluation_tables import (
    NOTHING,
    TABLES,
    THEIRS,
    EvaluationTable,
    as_csv,
    as_latex,
    as_markdown,
    tables,
)
from pipelines.published import Value, published
from tests.pipelines.evaluations import constant, evaluation, without

Made = dict[str, EvaluationTable]
EVIL = "<script>alert(1)</script> & 50% _x_ {y} | \\end{tabular}"


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation(transformer=True)


@pytest.fixture(scope="module")
def made(found: Evaluation) -> Made:
    return tables(found)


def of(mean: float, sd: float = 0.02, low: float = 0.4, high: float = 0.6) -> MeanScore:
    return MeanScore(values=(mean,), mean=mean, sd=sd, low=low, high=high, drawn=np.zeros(0))


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


class TestCells:
    @pytest.mark.parametrize(
        ("score", "measure", "text"),
        [
            (of(0.5), "average_precision", "50.0 ± 2.0 [40.0, 60.0]"),
            (of(0.5, sd=np.nan), "gini", "0.500 [0.400, 0.600]"),
            (of(0.5, low=np.nan, high=np.nan), "gini", "0.500 ± 0.020"),
            (of(2e-8, 1e-9, 1e-8, 3e-8), "total_variation", "2.0e-08 ± 1.0e-09 [1.0e-08, 3.0e-08]"),
            (of(-0.00001), "input_perturbation_above_chance@zero", "0.0 ± 2.0 [40.0, 60.0]"),
            (of(np.nan), "gini", ""),
            (of(np.inf, np.nan, 0.1, np.inf), "kl_from_fine", "∞ [0.100, ∞]"),
            (None, "gini", ""),
        ],
    )
    def test_what_is_known_is_written(
        self, score: MeanScore | None, measure: str, text: str
    ) -> None:
        assert score_text(score, measure) == text

    def test_nan_never_wins_and_one_is_no_best(self) -> None:
        assert best_mean([of(np.nan), of(0.2), of(0.3), None], "gini") == 0.3
        assert best_mean([of(np.nan), of(0.2), of(0.3), None], "entropy") == 0.2
        assert best_mean([of(np.inf), of(0.2), of(0.3)], "kl_from_fine") == 0.2
        assert np.isnan(best_mean([of(0.2), of(np.nan), None], "gini"))
        assert not score_cell(of(np.nan), "gini", 0.3).best
        assert not score_cell(None, "gini", 0.3).best
        assert not score_cell(of(0.3), "gini", np.nan).best

    def test_what_looks_equal_is_equally_good(self) -> None:
        assert score_cell(of(0.30001), "gini", 0.3).best
        assert not score_cell(of(0.302), "gini", 0.3).best
        assert score_cell(of(2e-8), "total_variation", 1e-9).best  # rounding
        assert not score_cell(of(2e-5), "total_variation", 1e-9).best

    def test_numbers_and_signs(self) -> None:
        assert number(0.12345, "average_precision") == "12.3"
        assert number(-1e-9, "pointing_game") == "0.0"
        assert signed(0.012, "average_precision") == "+1.2"
        assert signed(-0.012, "gini") == "-0.012"
        assert number(-np.inf, "gini") == "-∞"
        assert (bare(np.inf), bare(np.nan)) == (np.inf, "")
        assert signed(np.nan, "gini") == number(np.nan, "gini") == ""

    def test_published_values_of_both_levels_are_named(self) -> None:
        rows = published(
            "brats18", "table-2", variant="baseline", network="unet", explainer="deeplift"
        )
        assert published_text(rows, "average_precision") == "49.40 (fine) / 55.66 (coarse)"
        assert published_text(rows[:1], "average_precision") == "49.40"
        assert published_text([], "average_precision") == ""
        assert published_text(rows, "gini") == ""
        assert Value(4.7).text(1) == "4.7"


class TestWords:
    def test_every_measure_of_the_tables_has_words(self, found: Evaluation) -> None:
        names = {name for mine in found.scores.values() for name in mine}
        assert {name.partition("@")[0] for name in names} <= set(WORDS)

    @pytest.mark.parametrize(
        ("name", "rising"),
        [
            ("average_precision", True),
            ("deletion@mean", False),
            ("input_perturbation_above_chance@zero", True),
            ("calibration_error", False),
            ("randomised_similarity", False),
            ("total_variation", False),
        ],
    )
    def test_directions(self, name: str, rising: bool) -> None:
        assert higher_is_better(name) is rising
        assert title_of(name).endswith("↑" if rising else "↓")

    def test_an_unknown_measure_is_called_by_its_name(self) -> None:
        assert words_of("strange_measure@zero").title == "strange measure"
        assert source_of("strange_measure") == ""
        assert source_of("input_perturbation_above_chance@zero") == "Ron et al., ICML 2022"


class TestTables:
    def test_every_table_is_there_with_rows_as_wide_as_its_heading(self, made: Made) -> None:
        assert list(made) == list(TABLES) == [f"table-{i}" for i in range(1, 8)]
        for table in made.values():
            widths = {len(row) for block in table.sheet.blocks for row in block.rows}
            assert widths == {len(table.sheet.heading)}

    def test_controls_stand_at_the_bottom_of_every_table_and_are_never_the_best(
        self, made: Made
    ) -> None:
        for table in made.values():
            blocks = table.sheet.blocks
            assert blocks[-1].label.startswith("controls")
            for block in blocks:
                if block.label.startswith("controls"):
                    assert not any(cell.best for row in block.rows for cell in row)
        names = [row[0].text for row in made["table-2"].sheet.blocks[-1].rows]
        assert names == [
            *("random", "uniform", "gaussian", "mean-mask", "edges"),
            "true-mask (upper bound)",
        ]

    def test_the_best_of_each_column_is_bold_in_its_direction(self, made: Made) -> None:
        localised = made["table-2"].sheet
        fine = localised.blocks[0]
        bold = {row[0].text for row in fine.rows if row[1].best}
        assert bold == {"exact attention"}
        accuracy = made["table-3"].sheet
        column = accuracy.heading.index("calibration error, % ↓")
        assert [r[0].text for r in accuracy.blocks[0].rows if r[column].best] == ["baseline"]
        assert accuracy.heading.index("parameters") == column + 1
        assert not any(row[column + 1].best for row in accuracy.blocks[0].rows)

    def test_levels_are_blocks_of_table_2(self, made: Made) -> None:
        labels = [block.label for block in made["table-2"].sheet.blocks]
        assert labels == [
            "fine level (block 3 of the paper)",
            "coarse level (block 4 of the paper)",
            "one map for all levels",
            "controls",
        ]

    def test_levels_are_columns_of_table_1_and_one_map_stands_in_both(
        self, found: Evaluation, made: Made
    ) -> None:
        sheet = made["table-1"].sheet
        assert sheet.heading[1:5] == [
            "fine: area, % ↑",
            "fine: area above chance, % ↑",
            "coarse: area, % ↑",
            "coarse: area above chance, % ↑",
        ]
        rows = {row[0].text: [cell.text for cell in row] for row in sheet.blocks[0].rows}
        assert rows["baseline deeplift"][1:3] == rows["baseline deeplift"][3:5]
        assert rows["fine attention"][3:5] == ["", ""]
        score = found.scores["exact attention coarse"]["input_perturbation@zero"]
        assert rows["exact attention"][3] == score_text(score, "input_perturbation")
        assert [block.label for block in sheet.blocks] == [
            "removed pixels become: zero",
            "controls, removed pixels become: zero",
            "removed pixels become: mean",
            "controls, removed pixels become: mean",
        ]

    def test_an_entry_without_a_score_has_no_row(self, found: Evaluation, made: Made) -> None:
        names = [row[0].text for row in made["table-4"].sheet.blocks[0].rows]
        bare = without(found, "gini", "group_gini", "sparsity", "entropy")
        fewer = [row[0].text for row in tables(bare)["table-4"].sheet.blocks[0].rows]
        assert "baseline lrp" in names
        assert "baseline lrp" not in fewer
        assert "dual attention fine" in fewer

    def test_guessing_is_the_control_of_accuracy(self, made: Made) -> None:
        sheet = made["table-3"].sheet
        (row,) = sheet.blocks[-1].rows
        assert [cell.text for cell in row[:5]] == ["guessing", "", "50.0", "50.0", ""]

    def test_differences_hold_value_interval_and_p(self, found: Evaluation, made: Made) -> None:
        sheet = made["table-7"].sheet
        row = next(r for r in sheet.blocks[0].rows if r[0].text == "dual attention fine")
        item = next(
            x
            for x in found.differences
            if (x.variant, x.measure) == ("dual attention fine", "average_precision")
        )
        low, high = 100 * item.low, 100 * item.high
        expected = f"{100 * item.value:+.1f} [{low:+.1f}, {high:+.1f}]"
        assert row[1].text == f"{expected}, p {item.p:.3f} ({item.p_holm:.3f})"


class TestPublished:
    def test_values_stand_beside_ours_and_are_marked(self, made: Made) -> None:
        sheet = made["table-2"].sheet
        column = sheet.heading.index(f"AP: {THEIRS}, %")
        texts = {row[0].text: row[column].text for row in sheet.blocks[0].rows}
        assert texts["dual attention"] == texts["dual-published attention"] == "71.82 ± 4.2"
        assert texts["exact attention"] == ""
        assert texts["baseline gradcam"] == "58.68"
        assert {row[column].text for row in sheet.blocks[-1].rows} == {""}
        assert not any(row[column].best for block in sheet.blocks for row in block.rows)

    def test_table_1_is_of_the_other_data_set(self) -> None:
        pet = evaluation(recipe="fdg-pet", seeds=2, variants=("baseline", "dual"))
        sheet = tables(pet)["table-1"].sheet
        assert sheet.heading[-2:] == [f"fine: {THEIRS}, %", f"coarse: {THEIRS}, %"]
        rows = {row[0].text: [cell.text for cell in row[-2:]] for row in sheet.blocks[0].rows}
        assert rows["dual attention"] == ["32.48 ± 1.81", "27.59 ± 1.23"]
        assert rows["baseline deeplift"] == ["20.37", "20.37"]

    def test_other_data_sets_have_none(self) -> None:
        other = evaluation(recipe="mine", seeds=2, variants=("baseline", "dual"))
        for table in tables(other).values():
            assert THEIRS not in " ".join(table.sheet.heading)


class TestFiles:
    @pytest.mark.parametrize("name", ["table-1", "table-2", "table-4", "table-5", "table-6"])
    def test_csv_reads_back_to_the_bit(self, found: Evaluation, made: Made, name: str) -> None:
        rows = {row["entry"]: row for row in read(as_csv(made[name].rows))}
        assert list(rows) == list(found.entries)
        checked = 0
        for entry, row in rows.items():
            for measure, score in found.scores[entry].items():
                if measure not in row:
                    continue
                for key, value in ((measure, score.mean), (f"{measure}_low", score.low)):
                    assert float(row[key]) == value
                    checked += 1
                sd = row[f"{measure}_sd"]
                assert sd == "" if np.isnan(score.sd) else float(sd) == score.sd
        assert checked > 20

    def test_csv_of_models_and_differences(self, found: Evaluation, made: Made) -> None:
        models = {row["model"]: row for row in read(as_csv(made["table-3"].rows))}
        for name, model in found.models.items():
            assert float(models[name]["auc_high"]) == model.scores["auc"].high
            assert models[name]["seeds"] == "0 1 2 3 4"
        assert models["dual"]["accuracy_published_percent"] == "97.36"
        assert models["exact"]["accuracy_published_percent"] == ""
        rows = read(as_csv(made["table-7"].rows))
        assert len(rows) == len(found.differences)
        for row, item in zip(rows, found.differences, strict=True):
            assert (row["entry"], float(row["p_holm"])) == (item.variant, item.p_holm)

    def test_csv_keeps_what_is_published_apart(self, made: Made) -> None:
        rows = {row["entry"]: row for row in read(as_csv(made["table-2"].rows))}
        row = rows["baseline deeplift"]
        assert row["average_precision_published_percent_fine"] == "49.4"
        assert row["average_precision_published_percent_coarse"] == "55.66"
        assert rows["dual attention fine"]["iou_900_published_percent_coarse"] == ""

    @pytest.mark.parametrize("name", list(TABLES))
    def test_latex_is_balanced(self, made: Made, name: str) -> None:
        text = as_latex(made[name])
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
        assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
        width = len(made[name].sheet.heading)
        rows = [x for x in text.splitlines() if x.endswith(r"\\") and "multicolumn" not in x]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {width - 1}
        assert not set("±↑↓<>") & set(text)

    def test_evil_names_stay_in_their_cells(self) -> None:
        plain = evaluation(seeds=2, variants=("baseline", "dual"))
        entry = replace(plain.entries["dual attention fine"], model=EVIL)
        model = replace(plain.models["dual"], name=EVIL)
        entries = {**plain.entries, entry.name: entry}
        scores = {**plain.scores, entry.name: plain.scores["dual attention fine"]}
        evil = replace(plain, entries=entries, scores=scores, models={**plain.models, EVIL: model})
        for table in tables(evil).values():
            markdown, latex = as_markdown(table), as_latex(table)
            assert "<script>" not in markdown + latex
            assert latex.count(r"\end{tabular}") == 1
            lines = [x for x in markdown.splitlines() if x.startswith("|")]
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1

    @pytest.mark.parametrize(
        ("missing", "name"),
        [
            ("masks", "table-2"),
            ("curves", "table-1"),
            ("curves", "table-5"),
            ("verified", "table-6"),
        ],
    )
    def test_a_table_without_numbers_says_so(self, missing: str, name: str) -> None:
        bare = evaluation(
            seeds=2,
            variants=("baseline", "dual"),
            masks=missing != "masks",
            curves=missing != "curves",
            verified=missing != "verified",
        )
        table = tables(bare)[name]
        assert table.is_empty
        assert NOTHING in as_markdown(table)
        assert NOTHING in as_latex(table)
        others = [x for key, x in tables(bare).items() if key != name]
        assert sum(x.is_empty for x in others) == (1 if missing == "curves" else 0)

    def test_one_seed_has_no_spread(self) -> None:
        single = evaluation(seeds=1, variants=("baseline", "dual"))
        rows = [row for b in tables(single)["table-2"].sheet.blocks for row in b.rows]
        assert not any("±" in cell.text for row in rows for cell in row[1:7])
        assert tables(single)["table-2"].rows[0]["average_precision_sd"] == ""


def test_the_factory_means_what_it_says() -> None:
    score = constant(0.5, (0.4, 0.6), low=0.3, high=0.7)
    assert score.drawn[0] == 0.3
    assert score.drawn[-1] == 0.7
