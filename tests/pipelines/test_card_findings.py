import jinja2
import pytest
import yaml

from data_cards import read_text
from pipelines.card import check_card, render_card
from pipelines.card_findings import finding_rows
from preprocessing.chestxray_tables import CLASSES

SAMPLES = [
    {"subject_id": "a", "split": "train", "label": "Mass", "findings": "Mass"},
    {"subject_id": "a", "split": "train", "label": "", "findings": "Mass|Nodule"},
    {"subject_id": "b", "split": "test", "label": "", "findings": "No Finding"},
    {"subject_id": "c", "split": "validation", "label": "", "findings": "Mass|Hernia"},
]
MANIFEST = {
    "name": "chestxray14",
    "classes": list(CLASSES),
    "config": {"image_size": 256, "seed": 0},
    "counts": {"files": {"seen": 8, "used": 4, "excluded": 1, "skipped": 3}},
    "shards": [],
}


def test_each_finding_is_counted_in_each_split():
    assert finding_rows(SAMPLES) == [
        {"name": "Mass", "counts": [2, 1, 0, 3], "subjects": 2},
        {"name": "Hernia", "counts": [0, 1, 0, 1], "subjects": 1},
        {"name": "No Finding", "counts": [0, 0, 1, 1], "subjects": 1},
        {"name": "Nodule", "counts": [1, 0, 0, 1], "subjects": 1},
    ]


def test_a_data_set_without_findings_has_no_counts():
    assert finding_rows([{"subject_id": "a", "split": "train", "label": "x"}]) == []


def test_the_card_of_chestxray14_says_what_every_card_must():
    text = render_card(MANIFEST, SAMPLES, [])
    check_card(text)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["classes"] == list(CLASSES)
    assert "unrestricted" in front["license"]
    flat = " ".join(text.split())
    for fact in (
        "4 frontal chest radiographs of 3 patients",
        "resampled to 256 x 256",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "Diagnosis, triage or treatment",
        "Wang, Peng, Lu",
    ):
        assert fact in flat


@pytest.mark.parametrize("above", [True, False])
def test_the_probe_stands_on_top_only_where_it_warns(above):
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(
        read_text("chestxray14.md")
    )
    plain = render_card(MANIFEST, SAMPLES, [])
    context = {
        **dict.fromkeys(("name", "license", "code_version", "key_id", "config_yaml"), "x"),
        **{key: [] for key in ("classes", "class_columns", "split_rows", "files")},
        **{key: [] for key in ("exclusions", "skipped", "warnings", "finding_rows")},
        **{"sample_count": 1, "subject_count": 1, "image_size": 64},
        **{"probe_above": above, "probe_section": "THE PROBE"},
    }
    text = template.render(context)
    assert "THE PROBE" not in plain
    assert text.count("THE PROBE") == 1
    assert (text.index("THE PROBE") < text.index("## What it is")) == above
