"""Tables, figures, cases and the section: what they hold, what stays empty, what is escaped."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from pipelines.box_figures import accuracy_figure
from pipelines.box_gallery import gallery_cases, picked
from pipelines.box_localisation import box_localisation
from pipelines.box_measures import MEASURES
from pipelines.box_records import CLEAN, CONTROL, MEAN, MEAN_BOX, TRUE_BOX, BoxEntry, BoxScores
from pipelines.box_report import html_section, verdict, write_box_report
from pipelines.box_statistics import (
    against_mean_box,
    case_draws,
    mean_score,
    score_cases,
)
from pipelines.box_tables import case_rows, tables, title_of
from pipelines.box_truth import PUBLISHED_ORDER, BoxCase
from pipelines.config import TrainConfig
from pipelines.errors import UsageError
from pipelines.evaluation_tables import as_csv, as_latex, as_markdown
from pipelines.published_chest import WANG, WANG_IOBB
from pipelines.train import train
from preprocessing.chestxray import CLASSES
from tests.pipelines.boxed import write_boxed

BOXED = PUBLISHED_ORDER[:3]
MODELS = ("plain cam", "plain <script> cam")


def entry(name: str, condition: str = CLEAN) -> BoxEntry:
    model = name.removesuffix(" cam")
    return BoxEntry(
        model=model,
        method="cam",
        explainer="cam",
        kind="post-hoc",
        condition=condition,
        seeds=(0, 1),
    )


@pytest.fixture(scope="module")
def found() -> BoxScores:
    """Two models, one of them attacked, and two controls; three findings have boxes."""
    rng = np.random.default_rng(0)
    cases = [
        BoxCase(
            index=i,
            sample_id=f"s{i}",
            subject_id=f"p{i // 2}",
            finding=i % 3,
            boxes=np.array([[1.0, 1.0, 4.0, 4.0]]),
        )
        for i in range(18)
    ]
    columns = np.array([case.finding for case in cases])
    subjects = [case.subject_id for case in cases]
    entries = [entry(MODELS[0]), entry(MODELS[1]), entry(MODELS[0], "turned")]
    entries += [
        BoxEntry(model=CONTROL, method=name, kind="control") for name in (MEAN_BOX, TRUE_BOX)
    ]
    per_case = {
        item.name: {
            seed: rng.random((18, len(MEASURES))) * (0.5 + 0.1 * place)
            for seed in (item.seeds or (-1,))
        }
        for place, item in enumerate(entries)
    }
    draws = case_draws(columns, subjects, resamples=50, seed=0)
    scores = {
        name: score_cases(
            list(own.values()), columns, findings=PUBLISHED_ORDER, subject_ids=subjects, draws=draws
        )
        for name, own in per_case.items()
    }
    area = mean_score(np.array([0.7, 0.8]), np.linspace(0.6, 0.9, 50))
    return BoxScores(
        title="Maps against boxes: phantoms",
        recipe="chestxray14",
        classes=CLASSES,
        findings=PUBLISHED_ORDER,
        cases=tuple(cases),
        entries={item.name: item for item in entries},
        scores=scores,
        per_case=per_case,
        differences=against_mean_box(scores),
        areas={"plain": {"Mass": area, MEAN: area}},
        prior="boxes of other test patients",
        samples=40,
        patients=20,
        resamples=50,
        notes=("a note & more",),
        failures={"plain attention, seed 0": "NO_ATTENTION: none <b>here</b>"},
    )


class TestTables:
    def test_findings_are_columns_in_the_published_order(self, found: BoxScores) -> None:
        heading = tables(found)["boxes-best-iobb"].sheet.heading
        assert heading[1:] == [
            *(f"{name} (6)" for name in BOXED),
            *(f"{name} (0)" for name in PUBLISHED_ORDER[3:]),
            MEAN,
        ]

    def test_a_finding_without_a_box_is_empty_and_not_zero(self, found: BoxScores) -> None:
        for name, table in tables(found).items():
            if name in ("boxes-areas", "boxes-differences"):
                continue
            for block in table.sheet.blocks:
                for row in block.rows:
                    if "published" not in row[0].text:
                        assert [cell.text for cell in row[4:9]] == [""] * 5
                        assert all(cell.text for cell in (*row[1:4], row[9]))
            missing = [row for row in table.rows if row["finding"] == "Nodule"]
            assert all(row["mean"] == "" for row in missing if row["kind"] != "published")

    def test_every_block_ends_with_the_controls_and_the_published_row(
        self, found: BoxScores
    ) -> None:
        made = tables(found)
        for block in made["boxes-best-iobb"].sheet.blocks:
            labels = [row[0].text for row in block.rows]
            assert labels[-3:] == [
                MEAN_BOX,
                f"{TRUE_BOX} (upper bound)",
                f"{WANG} (published, other data)",
            ]
        first = made["boxes-best-iobb"].sheet.blocks[0].rows[-1]
        wanted = [f"{value:.3f}" for value in WANG_IOBB[0.1].accuracy.values()]
        assert [cell.text for cell in first[1:9]] == wanted
        false = made["boxes-false-iobb"].sheet.blocks[0].rows[-1]
        assert false[1].text == "0.832"
        for name in ("boxes-best-iou", "boxes-union-iobb", "boxes-union-iou"):
            assert WANG not in as_markdown(made[name])

    def test_the_best_clean_model_is_bold_and_lower_is_better_for_false_boxes(
        self, found: BoxScores
    ) -> None:
        for name, choose in (("boxes-best-iou", max), ("boxes-false-iou", min)):
            table = tables(found)[name]
            for block in table.sheet.blocks:
                bold = [row[0].text for row in block.rows if row[1].best]
                measure = str(table.rows[0]["measure"])
                if block is table.sheet.blocks[0]:
                    means = {m: found.scores[m][BOXED[0]][measure].mean for m in MODELS}
                    assert bold == [choose(means, key=lambda m: means[m])]
                assert set(bold) <= set(MODELS)

    def test_csv_reads_back_to_the_bit(self, found: BoxScores) -> None:
        for table in tables(found).values():
            for row in csv.DictReader(io.StringIO(as_csv(table.rows))):
                if (
                    row.get("kind") != "published"
                    and "mean" in row
                    and row["mean"]
                    and "maps" in row
                ):
                    score = found.scores[row["maps"]][row["finding"]][row["measure"]]
                    assert float(row["mean"]) == score.mean
                    assert float(row["low"]) == score.low

    def test_cases_read_back_to_the_bit(self, found: BoxScores) -> None:
        rows = list(csv.DictReader(io.StringIO(as_csv(case_rows(found, MEASURES)))))
        assert len(rows) == 18 * (3 * 2 + 2)
        values = [float(row["pointing_game"]) for row in rows[:18]]
        column = MEASURES.index("pointing_game")
        assert values == found.per_case[MODELS[0]][0][:, column].tolist()
        assert {row["seed"] for row in rows if row["maps"] == MEAN_BOX} == {""}

    def test_differences_say_what_the_map_adds_to_the_place(self, found: BoxScores) -> None:
        table = tables(found)["boxes-differences"]
        item = next(d for d in found.differences if d.variant == MODELS[0])
        (row,) = [r for r in table.rows if (r["maps"], r["measure"]) == (MODELS[0], item.measure)]
        assert row["difference"] == item.value
        assert TRUE_BOX not in {r["maps"] for r in table.rows}
        nothing = tables(replace(found, differences=()))["boxes-differences"]
        assert nothing.is_empty

    def test_latex_and_markdown_are_escaped(self, found: BoxScores) -> None:
        for table in tables(found).values():
            latex, markdown = as_latex(table), as_markdown(table)
            assert "<script>" not in markdown
            assert "<script>" not in latex
            assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1

    def test_measures_have_names(self) -> None:
        assert title_of("pointing_game") == "pointing game"
        assert title_of("best_iou_180@0.1") == "single box, IoU at 180 from 0.1 on"


class TestFigures:
    def test_only_findings_with_boxes_have_a_panel(self, found: BoxScores) -> None:
        svg = accuracy_figure(found, criterion="iobb", threshold=180)["svg"]
        text = "".join(ElementTree.fromstring(svg).itertext())
        assert all(f"{name} (6)" in text for name in BOXED)
        assert "Nodule" not in text
        assert "published, other data" in text
        assert "mean over findings" in text
        again = accuracy_figure(found, criterion="iobb", threshold=180)["svg"]
        assert svg == again

    def test_published_values_stand_only_beside_the_same_measure(self, found: BoxScores) -> None:
        svg = accuracy_figure(found, criterion="iou", threshold=60)["svg"]
        assert b"published" not in svg


class TestSection:
    def test_says_the_verdict_and_holds_every_table(self, found: BoxScores) -> None:
        section = html_section(found)
        for table in tables(found).values():
            assert table.title in section
        assert "plain &lt;script&gt; cam" in section
        assert "<script>" not in section
        assert "none &lt;b&gt;here&lt;/b&gt;" in section
        assert "http" not in section
        assert section.count("<section") == section.count("</section>") == 1

    @pytest.mark.parametrize(
        ("shift", "words"),
        [(2.0, "is more than"), (-2.0, "is less than"), (0.0, "is not clearly more or less than")],
    )
    def test_every_verdict_can_be_reached(self, found: BoxScores, shift: float, words: str) -> None:
        items = tuple(
            replace(d, low=shift - 1, high=shift + 1, value=shift) for d in found.differences
        )
        sentences = verdict(replace(found, differences=items))
        assert sentences[0].startswith("The maps that cover the boxes best are those of plain")
        assert words in sentences[1]

    def test_without_maps_or_comparison_it_says_so(self, found: BoxScores) -> None:
        controls = {k: e for k, e in found.entries.items() if e.kind == "control"}
        assert verdict(replace(found, entries=controls)) == ["No map was measured."]
        assert len(verdict(replace(found, differences=()))) == 1


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[BoxScores, Path, Path]:
    data = write_boxed(tmp_path_factory.mktemp("report-data"))
    run = tmp_path_factory.mktemp("report-run") / "run"
    settings = TrainConfig(
        network="densenet-narrow-stride8", variant="baseline", epochs=1, bootstrap=0, workers=0
    )
    train(settings, data=data, run=run)
    generator = torch.Generator().manual_seed(0)
    scores = box_localisation(run, data, ("gradcam",), generator=generator, resamples=5)
    return scores, run, data


class TestFiles:
    def test_everything_is_written(
        self, real: tuple[BoxScores, Path, Path], tmp_path: Path
    ) -> None:
        found, run, data = real
        cases = gallery_cases(found, run, data)
        assert [case.name.split(":")[0] for case in cases] == ["best", "median", "worst"]
        assert all(list(case.cells) == [found.models()[0].name] for case in cases)
        write_box_report(found, tmp_path, cases=cases)
        names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
        for name in tables(found):
            assert {f"tables/{name}.{ending}" for ending in ("csv", "md", "tex")} <= names
        for stem in ("boxes-iobb-60", "boxes-iou-180", "boxes-gallery"):
            assert {f"figures/{stem}.png", f"figures/{stem}.svg"} <= names
        section = (tmp_path / "boxes.html").read_text()
        assert section.count("data:image/png") == 3
        assert str(run) not in section

    def test_the_best_case_is_the_best(self, real: tuple[BoxScores, Path, Path]) -> None:
        found = real[0]
        name = found.models()[0].name
        chosen = picked(found, name)
        column = found.per_case[name][0][:, MEASURES.index("iou_equal_area")]
        assert column[chosen["best"]] == column.max()
        assert column[chosen["worst"]] == column.min()
        below = (column <= column[chosen["median"]]).sum()
        assert below >= math.ceil(len(column) / 2)

    def test_an_entry_that_is_none(self, real: tuple[BoxScores, Path, Path]) -> None:
        with pytest.raises(UsageError, match="no maps are called 'camm'; known: ") as caught:
            picked(real[0], "camm")
        assert caught.value.code == "UNKNOWN_ENTRY"
