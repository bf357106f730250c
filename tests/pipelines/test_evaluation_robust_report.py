"""Tables, claims, figures and the page's section about attacks, from a record made up for it."""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from pipelines.comparison_scores import MeanScore
from pipelines.evaluation_claims import ROBUST_CLAIMS
from pipelines.evaluation_findings import model_like
from pipelines.evaluation_measures import higher_is_better, source_of, words_of
from pipelines.evaluation_records import Entry, Evaluation, MaskingCheck, Model, Robustness
from pipelines.evaluation_report import write_report
from pipelines.evaluation_robust_figures import (
    ACCURACY,
    GRADIENTS,
    METHODS,
    SPARSITY,
    draw_attacks,
)
from pipelines.evaluation_robust_findings import guarded, is_claimed_of, robust_findings
from pipelines.evaluation_robust_gallery import Believed, believed, choose, gradient_groups
from pipelines.evaluation_robust_page import NOT_ASKED, masking_text
from pipelines.evaluation_robust_tables import ROBUST_TABLES, robust_tables
from pipelines.evaluation_sentences import robust_verdict
from pipelines.evaluation_tables import as_csv, as_latex, as_markdown
from pipelines.published_robustness import METHODS as THEIRS
from pipelines.published_robustness import RADII, VALUES
from tests.pipelines.evaluations import evaluation, pictures, score

SEEDS = (0, 1, 2, 3, 4)
GINI = {"baseline": 0.5, "baseline l1": 0.7, "baseline group": 0.55, "exact": 0.52}
BALANCED = {"baseline": 0.95, "baseline l1": 0.94, "baseline group": 0.95, "exact": 0.95}
UNDER = {"baseline": 0.3, "baseline l1": 0.8, "baseline group": 0.31, "exact": 0.3}
RADII_OF_MAPS, LINF, L2 = (0.03, 0.1), (0.01, 0.05), (0.5,)


def of(mean: float, seeds: Sequence[int] = SEEDS) -> MeanScore:
    return score(mean, seeds=len(seeds), over_seeds=0.005, over_patients=0.005)


def predictions(mean: float) -> dict[str, MeanScore]:
    names = ("clean", "linf:0.01", "linf:0.05", "l2:0.5", "linf:mean", "l2:mean")
    return {
        f"attacked_{metric}@{name}": of(0.95 if name == "clean" else mean)
        for metric in ("accuracy", "balanced_accuracy", "auc")
        for name in names
    }


def maps(sparse: float, left: float) -> dict[str, MeanScore]:
    alike = ("top_k_intersection", "structural_similarity", "normalised_distance", "cosine")
    return {
        "gini": of(sparse),
        "group_gini": of(sparse - 0.1),
        **{
            f"{metric}@{attack}:{radius:g}": of(left - radius)
            for metric in alike
            for attack in ("worst", "noise")
            for radius in RADII_OF_MAPS
        },
        "stability_top_k_intersection": of(0.6, (0,)),
        "stability_structural_similarity": of(0.5, (0,)),
        "stability_cosine": of(0.4, (0,)),
    }


def model(name: str) -> Model:
    variant, _, objective = name.partition(" ")
    return Model(
        name=name,
        variant=variant,
        network="unet-encoder-narrow",
        frozen=False,
        seeds=SEEDS,
        parameters=1234,
        scores={"balanced_accuracy": of(BALANCED[name])},
        objective=objective or "standard",
    )


def robustness(moreau: float = 0.8) -> Robustness:
    entries, scores = {}, {}
    for name in GINI:
        for method in ("gradient", "moreaugrad"):
            entry = Entry(model=name, method=method, kind="post-hoc", seeds=SEEDS)
            entries[entry.name] = entry
            scores[entry.name] = maps(GINI[name], 0.5 if method == "gradient" else moreau)
    own = Entry(model="exact", method="attention", level="fine", kind="attention", seeds=SEEDS)
    entries[own.name], scores[own.name] = own, maps(0.8, 0.9)
    return Robustness(
        radii=RADII_OF_MAPS,
        linf_radii=LINF,
        l2_radii=L2,
        samples=40,
        explained=12,
        patients=20,
        predictions={name: predictions(mean) for name, mean in UNDER.items()},
        entries=entries,
        scores=scores,
        differences=(),
        masking=(check("baseline", 0), check("baseline l1", 2)),
        notes=("Attacked with fewer draws: moreaugrad.",),
    )


def check(name: str, suspected: int) -> MaskingCheck:
    return MaskingCheck(
        model=name,
        attack="linf",
        radius=0.05,
        iterative=0.5,
        one_step=0.6,
        noise=0.4 if suspected else 0.9,
        suspected=suspected,
        seeds=5,
    )


@pytest.fixture(scope="module")
def found() -> Evaluation:
    plain = evaluation(variants=("baseline", "exact"), curves=False, verified=False)
    models = {name: model(name) for name in GINI}
    return replace(plain, models=models, robustness=robustness())


def verdicts(found: Evaluation, claim: str) -> dict[str, str]:
    return {x.model: x.verdict for x in robust_findings(found) if x.claim == claim}


class TestClaims:
    def test_sparse_training_is_held_against_the_network_trained_as_usual(
        self, found: Evaluation
    ) -> None:
        assert verdicts(found, "gradients-are-sparser") == {"baseline l1": "holds"}
        assert verdicts(found, "gradients-are-sparser-by-groups") == {"baseline group": "holds"}
        (item,) = (x for x in robust_findings(found) if x.claim == "gradients-are-sparser")
        assert [x.measure for x in item.comparisons] == ["gini", "balanced_accuracy"]
        assert [x.rival for x in item.comparisons] == ["baseline gradient", "baseline"]

    def test_three_points_of_accuracy_are_too_many(self, found: Evaluation) -> None:
        costly = replace(
            found.models["baseline l1"], scores={"balanced_accuracy": of(BALANCED["exact"] - 0.06)}
        )
        models = {**found.models, "baseline l1": costly}
        worse = verdicts(replace(found, models=models), "gradients-are-sparser")
        assert worse == {"baseline l1": "does not hold"}

    def test_accuracy_is_compared_under_the_attack_that_is_guarded_against(
        self, found: Evaluation
    ) -> None:
        made = {x.model: x for x in robust_findings(found) if x.claim == "robust-predictions"}
        assert made["baseline l1"].verdict == "holds"
        assert [x.measure for x in made["baseline l1"].comparisons] == [
            "attacked_balanced_accuracy@linf:mean"
        ]
        assert [x.measure for x in made["baseline group"].comparisons] == [
            "attacked_balanced_accuracy@l2:mean"
        ]
        assert guarded("pgd-l2") == "l2"
        assert guarded("elastic-iterative") == "linf"

    @pytest.mark.parametrize(("moreau", "word"), [(0.8, "holds"), (0.2, "does not hold")])
    def test_moreaugrad_is_held_against_the_gradient_at_every_radius(
        self, found: Evaluation, moreau: float, word: str
    ) -> None:
        changed = replace(found, robustness=robustness(moreau))
        assert set(verdicts(changed, "moreau-withstands").values()) == {word}
        item = next(x for x in robust_findings(changed) if x.claim == "moreau-withstands")
        assert [x.measure for x in item.comparisons] == [
            f"top_k_intersection@worst:{radius:g}" for radius in RADII_OF_MAPS
        ]

    def test_what_is_missing_cannot_be_said(self, found: Evaluation) -> None:
        assert found.robustness is not None
        bare = replace(found.robustness, entries={}, scores={}, predictions={})
        models = {"baseline": found.models["baseline"], "exact": found.models["exact"]}
        made = robust_findings(replace(found, models=models, robustness=bare))
        assert {x.claim for x in made} == set(ROBUST_CLAIMS)
        assert {x.verdict for x in made} == {"cannot be said"}
        lonely = {"baseline l1": found.models["baseline l1"]}
        (item,) = (
            x
            for x in robust_findings(replace(found, models=lonely))
            if x.claim == "gradients-are-sparser"
        )
        assert item.comparisons[0].missing == (
            "Gini of gradient of the network trained as usual was not measured"
        )
        assert math.isnan(item.p_holm)

    def test_nothing_is_claimed_without_attacks(self, found: Evaluation) -> None:
        assert robust_findings(replace(found, robustness=None)) == []
        assert robust_verdict([]) == ""

    def test_the_verdict_counts_models(self, found: Evaluation) -> None:
        sentence = robust_verdict(robust_findings(found))
        assert "MoreauGrad moving less than the gradient holds for 4" in sentence

    @pytest.mark.parametrize(
        ("claim", "objective", "made"),
        [
            ("gradients-are-sparser", "l1-penalty", True),
            ("gradients-are-sparser", "group", False),
            ("gradients-are-sparser-by-groups", "group-iterative", True),
            ("robust-predictions", "mask-guided", False),
            ("robust-predictions", "standard", False),
            ("moreau-withstands", "standard", True),
        ],
    )
    def test_claims_are_made_of_families(self, claim: str, objective: str, made: bool) -> None:
        assert is_claimed_of(ROBUST_CLAIMS[claim], objective) == made

    def test_other_claims_compare_within_an_objective_first(self, found: Evaluation) -> None:
        robust_exact = replace(found.models["exact"], name="exact l1", objective="l1")
        assert model_like(found, robust_exact, "baseline") == found.models["baseline l1"]
        assert model_like(found, found.models["exact"], "baseline") == found.models["baseline"]


class TestTables:
    def test_every_table_is_there_with_rows_as_wide_as_its_heading(self, found: Evaluation) -> None:
        made = robust_tables(found)
        assert list(made) == list(ROBUST_TABLES) == [f"table-{i}" for i in range(8, 15)]
        for name, table in made.items():
            widths = {len(row) for block in table.sheet.blocks for row in block.rows}
            assert widths <= {len(table.sheet.heading)}
            assert table.is_empty == (name in ("table-12", "table-13"))
            assert as_markdown(table).startswith(f"# {table.title}")
            assert as_latex(table)

    def test_csv_reads_back_to_the_bit(self, found: Evaluation) -> None:
        assert found.robustness is not None
        made = robust_tables(found)
        rows = {r["model"]: r for r in csv.DictReader(StringIO(as_csv(made["table-8"].rows)))}
        for name, scores in found.robustness.predictions.items():
            for measure in ("attacked_auc@clean", "attacked_balanced_accuracy@linf:mean"):
                assert float(rows[name][measure]) == scores[measure].mean
                assert float(rows[name][f"{measure}_low"]) == scores[measure].low
        sparse = {r["model"]: r for r in csv.DictReader(StringIO(as_csv(made["table-10"].rows)))}
        for name, expected in BALANCED.items():
            assert float(sparse[name]["balanced_accuracy"]) == pytest.approx(expected)
            assert float(sparse[name]["gini"]) == pytest.approx(GINI[name])

    def test_the_best_of_a_column_is_marked(self, found: Evaluation) -> None:
        (block,) = robust_tables(found)["table-10"].sheet.blocks
        best = [row[0].text for row in block.rows if row[2].best]
        assert best == ["baseline l1"]

    def test_theirs_are_marked(self, found: Evaluation) -> None:
        table = robust_tables(found)["table-14"]
        assert all("published, other data" in text for text in table.sheet.heading[1:])
        for charts in VALUES.values():
            for data, lines in charts.items():
                assert len(lines) == len(THEIRS)
                assert all(len(line) == len(RADII[data]) for line in lines)
        order = THEIRS.index("gradient"), THEIRS.index("moreaugrad")
        for charts in (VALUES["top_k_intersection"], VALUES["structural_similarity"]):
            for lines in charts.values():
                pairs = zip(lines[order[0]], lines[order[1]], strict=True)
                assert all(plain < moreau for plain, moreau in pairs)

    def test_nothing_attacked_nothing_tabled(self, found: Evaluation) -> None:
        assert robust_tables(replace(found, robustness=None)) == {}

    @pytest.mark.parametrize(
        ("name", "rises"),
        [
            ("attacked_accuracy@linf:0.01", True),
            ("normalised_distance@worst:0.1", False),
            ("stability_cosine", True),
        ],
    )
    def test_measures_have_words_and_a_direction(self, name: str, rises: bool) -> None:
        assert higher_is_better(name) == rises
        assert words_of(name).definition
        assert source_of(name)


class TestFigures:
    def test_all_are_drawn_and_name_their_lines(self, found: Evaluation) -> None:
        drawn = draw_attacks(found)
        assert set(drawn) == {METHODS, GRADIENTS, ACCURACY, SPARSITY}
        for name, expected in (
            (METHODS, ["baseline moreaugrad", "exact attention fine"]),
            (GRADIENTS, ["baseline l1 gradient"]),
            (ACCURACY, ["baseline group", "guessing"]),
            (SPARSITY, ["baseline l1"]),
        ):
            text = drawn[name]["svg"].decode()
            assert all(f">{line}<" in text for line in expected), name
            assert drawn[name]["png"].startswith(b"\x89PNG")

    def test_what_was_not_measured_is_not_drawn(self, found: Evaluation) -> None:
        assert found.robustness is not None
        bare = replace(
            found.robustness, radii=(), linf_radii=(), l2_radii=(), entries={}, scores={}
        )
        assert draw_attacks(replace(found, robustness=bare)) == {}
        assert draw_attacks(replace(found, robustness=None)) == {}


def write_predictions(out: Path, rows: Sequence[tuple[str, str, str, float]]) -> None:
    folder = out / "predictions"
    folder.mkdir(parents=True)
    with (folder / "baseline-seed-0.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["sample_id", "subject_id", "label", "probability_no tumour", "probability_tumour"]
        )
        writer.writerows([*row[:3], 1 - row[3], row[3]] for row in rows)


class TestGallery:
    def test_cases_are_chosen_by_probability_one_of_a_patient(self) -> None:
        samples = [
            Believed(sample_id=f"s{i}", subject_id=f"p{i // 2}", probability=i / 10)
            for i in range(8)
        ]
        chosen = choose(samples)
        assert chosen["gradients-best"] == ["s7", "s5"]
        assert chosen["gradients-worst"] == ["s0", "s2"]
        assert chosen["gradients-median"][0] == "s3"

    def test_pictures_with_nothing_to_find_are_left_out(
        self, found: Evaluation, tmp_path: Path
    ) -> None:
        rows = [
            ("a", "p0", "tumour", 0.9),
            ("b", "p1", "no tumour", 0.1),
            ("c", "p2", "tumour", 0.2),
        ]
        write_predictions(tmp_path, rows)
        assert [(x.sample_id, x.probability) for x in believed(found, tmp_path)] == [
            ("a", 0.9), ("c", 0.2),
        ]  # fmt: skip
        assert believed(found, tmp_path / "elsewhere") == []

    def test_gradients_of_every_model_stand_side_by_side(
        self, found: Evaluation, tmp_path: Path
    ) -> None:
        write_predictions(tmp_path, [("a", "p0", "tumour", 0.9), ("c", "p2", "tumour", 0.2)])
        made = gradient_groups(found, tmp_path, pictures(found))
        assert [group.name for group in made] == [
            "gradients-best", "gradients-median", "gradients-worst",
        ]  # fmt: skip
        assert made[0].names == [f"{name} gradient" for name in GINI]
        assert made[0].cases[0].cells["baseline l1 gradient"].note.startswith("Gini 0.")
        assert gradient_groups(found, tmp_path / "elsewhere", pictures(found)) == []
        assert gradient_groups(replace(found, robustness=None), tmp_path, pictures(found)) == []


class TestPage:
    def test_holds_the_section_with_its_tables_claims_and_cases(
        self, found: Evaluation, tmp_path: Path
    ) -> None:
        write_predictions(tmp_path, [("a", "p0", "tumour", 0.9), ("c", "p2", "tumour", 0.2)])
        html = write_report(found, tmp_path, cases=pictures(found)).read_text(encoding="utf-8")
        for name in ROBUST_TABLES:
            assert f'id="{name}"' in html
            assert (tmp_path / "tables" / f"{name}.tex").is_file()
        assert 'href="#attacks"' in html
        assert "Which claims hold under attack" in html
        assert "Gradient maps where the true class is most probable" in html
        assert "baseline l1, linf 0.05: 2 of 5 networks" in html
        assert NOT_ASKED not in html
        assert (tmp_path / "galleries" / "gradients-worst.svg").is_file()
        assert (tmp_path / "figures" / f"{ACCURACY}.svg").is_file()
        with (tmp_path / "tables" / "claims.csv").open(newline="") as stream:
            claims = {row["claim"] for row in csv.DictReader(stream)}
        assert set(ROBUST_CLAIMS) <= claims

    def test_says_when_attacks_were_not_asked_for(self, found: Evaluation, tmp_path: Path) -> None:
        plain = replace(found, robustness=None)
        html = write_report(plain, tmp_path).read_text(encoding="utf-8")
        assert NOT_ASKED in html
        assert "Which claims hold under attack" not in html

    def test_gradients_that_hide_are_told_of(self) -> None:
        assert masking_text([]).startswith("Whether gradients mislead the attack was not checked")
        assert "nothing suggests" in masking_text([check("baseline", 0)])
        assert "2 of 5 networks (accuracy 50 % under many steps" in masking_text([check("x", 2)])
