import json

import pytest
import yaml

import data_cards
from pipelines import card
from pipelines.errors import DataError
from preprocessing.layout import FieldSpec
from preprocessing.records import Exclusion

CLASSES = ["normal", "mild", "severe"]
LAYOUT = {
    "image": FieldSpec(shape=(1, 8, 8), dtype="uint8", description="equalised projection"),
    "suv": FieldSpec(shape=(8, 8), dtype="float16", description="projection", unit="g/mL"),
}


def manifest(**changes):
    return {
        "name": "fdg-pet",
        "classes": CLASSES,
        "config": {"suv_formula": "suvbw", "image_size": 512, "keep_aspect": False, "seed": 3},
        "fields": ["image", "suv"],
        "key_id": "0a1b2c3d",
        "code_version": "9.8.7",
        "counts": {
            "samples": {"train": 3, "validation": 1, "test": 1},
            "subjects": 4,
            "files": {"seen": 70, "used": 50, "excluded": 15, "skipped": 5},
        },
        "skipped": {"NOT_DICOM": 5},
        "shards": [
            {
                "file": "shards/train-00000-of-00001.h5",
                "sha256": "a" * 64,
                "rows": 3,
                "split": "train",
            },
            {
                "file": "shards/test-00000-of-00001.h5",
                "sha256": "b" * 64,
                "rows": 1,
                "split": "test",
            },
        ],
    } | changes


def sample(index, split, label, **changes):
    return {
        "sample_id": f"sample{index}",
        "subject_id": f"subject{index % 4}",
        "split": split,
        "label": label,
        "shard": f"shards/{split}-00000-of-00001.h5",
        "row": 0,
        "suv_factor": 0.0002,
        "suv_route": "START / private scan time (0009,100D)",
        "suv_max": 10.0 + index,
        "uptake_min": 60 + 5 * index,
        "vendor": "GE",
        "warnings": "",
    } | changes


SAMPLES = [
    sample(0, "train", "normal", warnings="DOSE_MBQ: was 370 | WEIGHT_G: was 70000"),
    sample(1, "train", "mild", warnings="DOSE_MBQ: was 280 | DOSE_MBQ: twice in one scan"),
    sample(2, "train", "severe", vendor="SIEMENS"),
    sample(3, "validation", "mild"),
    sample(4, "test", "normal"),
]
EXCLUSIONS = [
    Exclusion(code="NAC", subject_id="s", where="series a", detail="no ATTN", files=10),
    Exclusion(code="NAC", subject_id="s", where="series b", detail="no ATTN", files=3),
    Exclusion(code="GAP", subject_id="s", where="series c", detail="gap", files=2),
]


def rows_of(text, head):
    """Cells of the table whose header begins with the given cell."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return {row[0]: row[1:] for row in table if not row[0].startswith("---")}


def test_the_card_holds_this_builds_numbers():
    text = card.render_card(manifest(), SAMPLES, EXCLUSIONS)
    assert rows_of(text, "split") == {
        "split": ["normal", "mild", "severe", "samples", "patients"],
        "train": ["1", "1", "1", "3", "3"],
        "validation": ["0", "1", "0", "1", "1"],
        "test": ["1", "0", "0", "1", "1"],
        "all": ["2", "2", "1", "5", "4"],
    }
    assert rows_of(text, "code") == {
        "code": ["times", "files"],
        "GAP": ["1", "2"],
        "NAC": ["2", "13"],
    }
    assert rows_of(text, "warning") == {
        "warning": ["samples"],
        "DOSE_MBQ": ["2"],
        "WEIGHT_G": ["1"],
    }
    ranges = rows_of(text, "value")
    assert ranges["highest SUV of a projection (g/mL)"] == ["10.0", "12.0", "14.0"]
    assert ranges["minutes from injection to scan, rounded to 5"] == ["60", "70", "80"]
    assert "Files: 70 seen, 50 used, 15 excluded, 5 skipped." in text
    assert "Scanner makers seen: GE, SIEMENS." in text
    assert "NOT_DICOM 5." in text
    assert "START / private scan time (0009,100D): 5" in text


def test_the_settings_in_the_card_read_back():
    text = card.render_card(manifest(), SAMPLES, EXCLUSIONS)
    block = text.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(block) == manifest()["config"]
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pseudonym_key_id"] == "0a1b2c3d"
    assert front["classes"] == CLASSES
    assert (front["samples"], front["subjects"], front["code_version"]) == (5, 4, "9.8.7")


def test_the_card_says_what_it_must_about_privacy_and_use():
    text = " ".join(card.render_card(manifest(), SAMPLES, EXCLUSIONS).split())
    assert "pseudonymised, not anonymous" in text
    assert "a projection of the head shows a face-like outline" in text
    assert "Diagnosis, triage or treatment" in text


def test_a_clean_build_says_so():
    bare = [sample(index, "train", "normal") for index in range(2)]
    text = card.render_card(manifest(skipped={}), bare, [])
    assert "Nothing that could have been used was left out." in text
    assert "No sample carries a warning." in text
    assert "Skipped because" not in text


def test_unlabelled_samples_and_masks_are_told():
    mixed = [*SAMPLES, sample(5, "train", "")]
    text = card.render_card(manifest(fields=["image", "mask"]), mixed, [])
    assert rows_of(text, "split")["train"] == ["1", "1", "1", "1", "4", "3"]
    assert "Some samples have no label" in text
    assert "for evaluation, not for training" in " ".join(text.split())
    assert "masks come from synthetic patients" in text
    assert "no label" not in card.render_card(manifest(), SAMPLES, [])


def test_the_paper_formula_is_told():
    told = "without decay correction"
    paper = manifest(config={"suv_formula": "paper", "keep_aspect": True, "image_size": 64})
    text = card.render_card(paper, SAMPLES, [])
    assert told in text
    assert "64 x 64, padded to keep its proportions" in text
    assert told not in card.render_card(manifest(), SAMPLES, [])


def test_a_manifest_with_the_needed_keys_only_gives_a_card():
    least = {"name": "fdg-pet", "classes": CLASSES, "shards": []}
    rows = [{"subject_id": "s", "split": "train", "label": "mild"}]
    assert "1 coronal" in card.render_card(least, rows, [])


def test_a_data_set_without_card_is_refused():
    with pytest.raises(DataError, match=r"'mystery-ct' has no card: write data_cards/"):
        card.render_card(manifest(name="mystery-ct"), SAMPLES, [])


def _without_section(text, title):
    before, _, rest = text.partition(f"## {title}\n")
    return before + rest[rest.index("\n## ") :]


def test_a_card_that_leaves_something_out_is_refused():
    text = card.render_card(manifest(), SAMPLES, EXCLUSIONS)
    card.check_card(text)
    for title in json.loads(data_cards.read_text("schema.json"))["sections"][:-1]:
        with pytest.raises(DataError, match=f"the data card lacks section '{title}'"):
            card.check_card(_without_section(text, title))
    with pytest.raises(DataError, match="lacks key 'license'"):
        card.check_card(text.replace("license: ", "licence: "))
    emptied = text.replace("Research on classifiers of whole-body PET", "").replace(
        "and on whether their explanations can be believed.", ""
    )
    with pytest.raises(DataError, match="lacks section 'What it may be used for'"):
        card.check_card(emptied)


def test_a_card_in_another_order_is_refused():
    text = card.render_card(manifest(), SAMPLES, EXCLUSIONS)
    swapped = text.replace("## Privacy", "## X").replace("## What it is", "## Privacy")
    with pytest.raises(DataError, match=r"not in the order of schema\.json"):
        card.check_card(swapped.replace("## X", "## What it is"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# title\n", "does not begin with front matter"),
        ("---\nname: x\n", "does not begin with front matter"),
        ("---\nname: [x\n---\n", "front matter is no YAML"),
    ],
)
def test_a_card_without_front_matter_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        card.check_card(text)


SAMPLES_CSV = b"sample_id,split,row,suv_max\na,train,0,3.5\nb,test,1,4\n"


def test_croissant_lists_each_shard_with_its_checksum():
    described = card.croissant(manifest(), layout=LAYOUT, samples_csv=SAMPLES_CSV)
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert described["@type"] == "sc:Dataset"
    objects = {o["@id"]: o for o in described["distribution"] if o["@type"] == "cr:FileObject"}
    for shard in manifest()["shards"]:
        assert objects[shard["file"]]["sha256"] == shard["sha256"]
        assert objects[shard["file"]]["contentUrl"] == shard["file"]
    assert len(objects["samples.csv"]["sha256"]) == 64


def test_croissant_describes_columns_and_arrays():
    described = card.croissant(manifest(), layout=LAYOUT, samples_csv=SAMPLES_CSV)
    samples, arrays = described["recordSet"]
    kinds = {field["name"]: field["dataType"] for field in samples["field"]}
    assert kinds == {
        "sample_id": "sc:Text",
        "split": "sc:Text",
        "row": "sc:Integer",
        "suv_max": "sc:Float",
    }
    fields = {field["name"]: field for field in arrays["field"]}
    assert fields.keys() == {"image", "label", "suv"}
    assert "float16 (N, 8, 8): projection, in g/mL" in fields["suv"]["description"]
    assert fields["suv"]["dataType"] == "sc:Float"
    assert "0 normal, 1 mild, 2 severe, -1 without label" in fields["label"]["description"]


def test_every_reference_in_croissant_points_at_something():
    described = card.croissant(manifest(), layout=LAYOUT, samples_csv=SAMPLES_CSV)
    known = {node["@id"] for node in described["distribution"]}
    ids = list(known)
    for record_set in described["recordSet"]:
        ids.append(record_set["@id"])
        for field in record_set["field"]:
            ids.append(field["@id"])
            source = field["source"]
            assert source.get("fileObject", source.get("fileSet"))["@id"] in known
            assert field["@id"].startswith(record_set["@id"] + "/")
    assert len(set(ids)) == len(ids)
    assert json.loads(json.dumps(described)) == described


def test_croissant_needs_the_manifest_only():
    described = card.croissant(manifest())
    assert [node["@id"] for node in described["recordSet"]] == ["arrays"]
    assert "samples.csv" not in {node["@id"] for node in described["distribution"]}


def test_croissant_of_an_empty_table_has_no_columns():
    described = card.croissant(manifest(), samples_csv=b"")
    assert described["recordSet"][0]["field"] == []


@pytest.mark.parametrize("file", ["/tmp/x.h5", "../x.h5", "shards/../../x.h5"])
def test_a_shard_outside_the_folder_is_refused(file):
    shards = [{"file": file, "sha256": "a" * 64, "rows": 1, "split": "train"}]
    with pytest.raises(DataError, match="a shard's file leads out of the data set"):
        card.croissant(manifest(shards=shards))


def test_an_unknown_file_of_the_cards_folder_is_refused():
    with pytest.raises(FileNotFoundError, match="absent"):
        data_cards.read_text("absent.md")
