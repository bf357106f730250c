"""The page and the files beside it: whole, self-contained, and honest about what is missing."""

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.evaluation_findings import findings
from pipelines.evaluation_records import Evaluation
from pipelines.evaluation_report import STAGES, page, write_report
from pipelines.evaluation_tables import TABLES, tables
from tests.pipelines.evaluations import evaluation, pictures, write_scores

EVIL = "<script>alert('x')</script>"
SMALL = ("baseline", "unconstrained", "dual")


class Reader(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.addresses += [str(named[key]) for key in ("src", "href") if named.get(key)]
        if named.get("id"):
            self.ids.append(str(named["id"]))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def text_of(found: Evaluation) -> str:
    html = page(found, tables(found), findings(found), {}, [], asked=False)
    return re.sub(r"\s+", " ", " ".join(read(html).words))


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation(seeds=2, variants=SMALL, fills=("zero",))


@pytest.fixture(scope="module")
def out(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_scores(found, folder)
    write_report(found, folder, cases=pictures(found))
    return folder


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


class TestFiles:
    def test_everything_is_written(self, out: Path) -> None:
        for name in TABLES:
            for ending in ("csv", "md", "tex"):
                assert (out / "tables" / f"{name}.{ending}").stat().st_size > 0
        for name in ("localisation", "agreement", "accuracy-localisation", "perturbation-zero"):
            assert (out / "figures" / f"{name}.png").is_file()
            assert (out / "figures" / f"{name}.svg").is_file()
        assert {path.name for path in (out / "galleries").iterdir()} >= {"best.png", "worst.svg"}

    def test_all_scores_are_there_to_the_bit(self, found: Evaluation, out: Path) -> None:
        with (out / "tables" / "scores.csv").open(newline="") as stream:
            rows = {row["entry"]: row for row in csv.DictReader(stream)}
        for name, scores in found.scores.items():
            for measure, score in scores.items():
                assert float(rows[name][measure]) == score.mean

    def test_claims_are_there_with_every_comparison(self, found: Evaluation, out: Path) -> None:
        with (out / "tables" / "claims.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == sum(len(item.comparisons) for item in findings(found))

    def test_progress_is_told_and_a_second_report_replaces_the_first(
        self, out: Path, tmp_path: Path
    ) -> None:
        small = evaluation(seeds=1, variants=("dual",), curves=False, masks=False)
        told: list[tuple[str, int, int]] = []
        for _ in range(2):
            path = write_report(
                small,
                tmp_path,
                progress=lambda stage, done, total: told.append((stage, done, total)),
            )
        assert path == tmp_path / "report.html"
        assert told[: len(STAGES)] == [(x, i, len(STAGES)) for i, x in enumerate(STAGES, start=1)]
        assert not (tmp_path / "galleries").exists()


class TestPage:
    def test_needs_no_network_and_no_script(self, html: str) -> None:
        found = read(html)
        assert "script" not in found.tags
        assert all(x.startswith(("data:image/png;base64,", "#")) for x in found.addresses)
        assert "http://" not in html
        assert "https://" not in html

    def test_links_lead_somewhere(self, html: str) -> None:
        found = read(html)
        assert {x[1:] for x in found.addresses if x.startswith("#")} <= set(found.ids)

    def test_holds_every_table_and_its_numbers(self, found: Evaluation, html: str) -> None:
        ids = read(html).ids
        words = " ".join(read(html).words)
        for name, table in tables(found).items():
            assert name in ids
            for block in table.sheet.blocks:
                for row in block.rows:
                    assert all(cell.text in words for cell in row)

    def test_the_verdict_stands_before_every_table(self, html: str) -> None:
        assert html.index('class="verdict"') < html.index("<table")
        assert html.index("Which claims hold") < html.index('id="table-2"')

    def test_says_how_numbers_were_obtained(self, html: str) -> None:
        words = re.sub(r"\s+", " ", " ".join(read(html).words))
        for text in (
            "resamples of whole patients",
            "Ron et al., ICML 2022",
            "on data that are not these",
            "p values are two-sided",
            "Controls",
            "6 trained networks in all",
        ):
            assert text in words

    def test_failures_and_cases_are_shown(self, html: str) -> None:
        words = " ".join(read(html).words)
        for text in ("the map holds NaN", "Best cases", "Wrong predictions", "hit, AP 50 %"):
            assert text in words

    def test_no_path_of_the_machine(self, html: str, out: Path) -> None:
        assert str(out) not in html

    def test_text_of_the_data_cannot_become_markup(self, found: Evaluation) -> None:
        evil = replace(
            found,
            title=EVIL,
            classes=("no", EVIL),
            recipe=EVIL,
            notes=(EVIL,),
            failures={EVIL: EVIL},
        )
        drawn = page(evil, tables(evil), findings(evil), {}, [], asked=False)
        assert "<script" not in drawn
        assert drawn.count("&lt;script&gt;") >= 6


class TestMissing:
    def test_phantoms_and_people(self, found: Evaluation) -> None:
        assert "Phantoms, not patients." in text_of(found)
        people = text_of(replace(found, synthetic=False))
        assert "Phantoms, not patients." not in people
        assert "Research, not diagnosis." in people

    @pytest.mark.parametrize(
        ("settings", "texts"),
        [
            (
                {"masks": False},
                ("No true region was measured", "Nothing of this was measured.", "No cases:"),
            ),
            ({"curves": False}, ("No perturbation curve was measured.",)),
            ({"seeds": 1}, ("one seed: what training again would change is not known",)),
            (
                {"variants": ("unconstrained", "dual")},
                ("AP of a method applied to baseline was not measured", "cannot be said"),
            ),
            ({"variants": ("baseline", "fine")}, ("nothing can be said of them",)),
        ],
    )
    def test_what_is_missing_is_said(self, settings: dict, texts: tuple[str, ...]) -> None:
        found = evaluation(**({"seeds": 2, "variants": ("baseline", "dual")} | settings))
        words = text_of(found)
        for text in texts:
            assert text in words

    def test_without_failures_nothing_is_made_up(self, found: Evaluation) -> None:
        words = text_of(replace(found, failures={}))
        assert "Everything that was asked for was measured." in words

    def test_laws_of_methods_are_counted_where_there_are_any(self, found: Evaluation) -> None:
        assert "Do the maps keep their own law?" in text_of(found)
        assert "baseline gradcam fine 700 0 20" in text_of(found)
        assert "own law" not in text_of(replace(found, verdicts={}))

    def test_nothing_removed(self, found: Evaluation) -> None:
        assert "Pixels were removed from 120 of the pictures." in text_of(found)
        assert "No pixels were removed." in text_of(replace(found, scored=0))

    def test_no_controls(self, found: Evaluation) -> None:
        kept = {k: v for k, v in found.entries.items() if v.kind != "control"}
        assert "None was measured." in text_of(replace(found, entries=kept))

    def test_cases_that_were_not_found(self, tmp_path: Path) -> None:
        found = evaluation(seeds=1, variants=("fine",), curves=False)
        path = write_report(found, tmp_path, cases=pictures(found))
        assert "no scores per picture were found" in path.read_text(encoding="utf-8")
