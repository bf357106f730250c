import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipelines import probe as probe_module
from pipelines.near_duplicates import near_duplicates
from pipelines.probe import card_section, probe, probe_folder
from pipelines.probe_features import cell_means, detail, facing_left, shape_features, silhouette
from pipelines.probe_scores import (
    area_with_interval,
    judged_classes,
    make_plan,
    predict,
    weighted_area,
)
from pipelines.scores import weighted_area as all_pairs_area
from preprocessing.errors import ShardError
from preprocessing.records import Example
from preprocessing.shards import FieldSpec, write_case, write_manifest, write_shard

SIZE = 48
Mask = Callable[[np.random.Generator, int], np.ndarray]


def ellipse(rng: np.random.Generator, width: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    middle = rng.uniform(0.42, 0.58, 2)
    height = rng.uniform(0.25, 0.35)
    return ((rows - middle[0]) / height) ** 2 + ((columns - middle[1]) / width) ** 2 < 1


def same_shape(rng: np.random.Generator, label: int) -> np.ndarray:
    return ellipse(rng, rng.uniform(0.2, 0.4))


def telling_shape(rng: np.random.Generator, label: int) -> np.ndarray:
    return ellipse(rng, rng.uniform(0.2, 0.4) + 0.1 * label)


def telling_edge(rng: np.random.Generator, label: int) -> np.ndarray:
    """One class is of middling width, the other narrow or wide: no threshold parts them."""
    narrow_or_wide = (0.2, 0.4)[int(rng.integers(2))]
    return ellipse(rng, (narrow_or_wide if label else 0.3) + rng.normal(0, 0.02))


def write_data(
    out: Path,
    *,
    mask: Mask = same_shape,
    patients: int = 120,
    test_share: float = 0.4,
    classes: int = 2,
    each: int = 2,
    seed: int = 0,
    column: Callable[[np.random.Generator, int], dict] = lambda rng, label: {},
    label_sets: bool = False,
    alter: Callable[[np.ndarray, np.random.Generator], np.ndarray] = lambda image, rng: image,
    chunked: bool = True,
) -> tuple[Path, dict, list[dict]]:
    """Pictures whose grey values tell the class at once; what else does is up to the arguments."""
    rng = np.random.default_rng(seed)
    fields = {"image": FieldSpec((1, SIZE, SIZE), "uint8", "picture")}
    if label_sets:
        fields["labels"] = FieldSpec((classes,), "uint8", "classes")
    rows: dict[str, list[Example]] = {"train": [], "test": []}
    for patient in range(patients):
        split = "test" if patient < test_share * patients else "train"
        for visit in range(each):
            label = int(rng.integers(classes))
            grey = rng.integers(40, 80, (SIZE, SIZE)) + 60 * label
            image = np.where(mask(rng, label), grey, 0).astype(np.uint8)
            arrays = {"image": alter(image, rng)[None]}
            if label_sets:
                arrays["labels"] = (rng.uniform(size=classes) < 0.2).astype(np.uint8)
                arrays["labels"][label] = 1
            rows[split].append(
                Example(
                    sample_id=f"s{patient:04d}-{visit:02d}",
                    subject_id=f"p{patient:04d}",
                    arrays=arrays,
                    label=-1 if label_sets else label,
                    provenance=column(rng, label),
                )
            )
    names = [f"class{i}" for i in range(classes)]
    records, samples = [], []
    for split, examples in rows.items():
        if not examples:
            continue
        case = out / f"{split}.case"
        write_case(case, examples, layout=fields)
        file = f"shards/{split}-00000-of-00001.h5"
        record = write_shard(
            out / file,
            [(case, i) for i in range(len(examples))],
            layout=fields,
            split=split,
            name="probed",
            classes=names,
            workspace=out,
        )
        case.unlink()
        records.append({"file": file, "sha256": record.sha256, "rows": record.rows, "split": split})
        samples += [
            {
                "sample_id": item.sample_id,
                "subject_id": item.subject_id,
                "split": split,
                "label": names[item.label] if item.label >= 0 else "",
                "shard": file,
                "row": row,
                **item.provenance,
            }
            for row, item in enumerate(examples)
        ]
    manifest = {"name": "probed", "classes": names, "shards": records}
    return out, manifest, samples


@pytest.mark.parametrize("seed", range(3))
def test_a_shape_that_tells_nothing_is_at_chance_whatever_the_grey_values_tell(tmp_path, seed):
    found = probe(*write_data(tmp_path, seed=seed), seed=seed)
    assert found.low is not None
    assert found.low <= 0.5 <= found.high
    assert not found.above_chance
    assert "not shown to be better than chance" in found.sentence
    assert (found.held_out_patients, found.cross_validated) == (48, False)


@pytest.mark.parametrize("mask", [telling_shape, telling_edge])
def test_a_shape_that_tells_the_class_is_seen(tmp_path, mask):
    found = probe(*write_data(tmp_path, mask=mask))
    assert found.above_chance
    assert found.low > 0.6
    assert found.parts["outline"].low > 0.6
    assert "above chance" in found.sentence
    assert found.features == ("outline",)


def test_grey_values_beyond_zero_change_nothing(tmp_path):
    def shuffled(image, rng):
        order = np.random.default_rng(1).permutation(255) + 1
        return np.where(image > 0, order[image.astype(int) - 1], 0).astype(np.uint8)

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = probe(*write_data(tmp_path / "a", mask=telling_shape))
    other = probe(*write_data(tmp_path / "b", mask=telling_shape, alter=shuffled))
    assert (plain.auc, plain.low, plain.high) == (other.auc, other.low, other.high)


@pytest.mark.parametrize(
    ("column", "part"),
    [
        (lambda rng, label: {"vendor": "AB"[label if rng.uniform() < 0.8 else 0]}, "acquisition"),
        (lambda rng, label: {"spacing_z_mm": 3 + 0.5 * label + rng.normal(0, 0.5)}, "acquisition"),
        (
            lambda rng, label: {"slices": "" if rng.uniform() < 0.6 * label else 90},
            "acquisition",
        ),
        (lambda rng, label: {"z": 60 + 20 * label + rng.normal(0, 20)}, "place in the scan"),
    ],
)
def test_a_column_that_tells_the_class_is_seen(tmp_path, column, part):
    found = probe(*write_data(tmp_path, column=column))
    assert found.above_chance
    assert found.parts[part].low > 0.55
    assert found.parts["outline"].low <= 0.5


def test_a_column_that_says_what_was_found_is_not_used(tmp_path):
    found = probe(*write_data(tmp_path, column=lambda rng, label: {"findings": f"f{label}"}))
    assert not found.above_chance
    assert found.features == ("outline",)


def test_the_stored_size_is_told_apart_and_decides_nothing(tmp_path):
    def noisy_if_bright(image, rng):
        noise = rng.integers(0, 2, image.shape) if image.max() > 100 else 0
        return np.where(image > 0, image.max() - noise, 0).astype(np.uint8)

    found = probe(*write_data(tmp_path, alter=noisy_if_bright))
    assert found.parts["stored size"].low > 0.8
    assert not found.above_chance
    assert "The compressed size of a picture tells something" in card_section(found)


def test_few_test_patients_take_turns_with_the_others(tmp_path):
    found = probe(*write_data(tmp_path, mask=telling_shape, patients=60, test_share=0.1))
    assert found.cross_validated
    assert found.held_out_patients == 60
    assert found.above_chance
    assert "each tested by a classifier trained on others" in found.sentence


def test_taking_turns_does_not_find_what_is_not_there(tmp_path):
    inside = 0
    for seed in range(6):
        (tmp_path / str(seed)).mkdir()
        data = write_data(tmp_path / str(seed), patients=48, each=3, test_share=0.1, seed=seed)
        found = probe(*data, seed=seed)
        assert found.cross_validated
        assert not found.above_chance
        assert found.low is not None
        inside += found.low <= 0.5 <= found.high
    assert inside >= 4  # of a 95 % interval


def test_too_few_patients_are_said_to_be_too_few(tmp_path):
    found = probe(*write_data(tmp_path, mask=telling_shape, patients=8))
    assert (found.auc, found.low, found.high, found.above_chance) == (None, None, None, False)
    assert "too few patients to know (8 in all)" in found.sentence
    assert found.summary()["area_under_curve"] is None
    assert found.sentence in card_section(found)


def test_three_classes_are_judged_each_against_the_rest(tmp_path):
    found = probe(*write_data(tmp_path, mask=telling_shape, classes=3))
    assert found.classes == ("class0", "class1", "class2")
    assert found.above_chance


def test_pictures_with_several_classes_are_judged_class_by_class(tmp_path):
    found = probe(*write_data(tmp_path, mask=telling_shape, classes=4, label_sets=True))
    assert found.classes == ("class0", "class1", "class2", "class3")
    assert found.above_chance


def test_pictures_with_none_of_the_classes_are_told_from_those_with_any(tmp_path):
    out, manifest, samples = write_data(tmp_path, mask=telling_shape, classes=2, label_sets=True)
    for shard in manifest["shards"]:
        with h5py.File(out / shard["file"], "r+") as file:
            labels = np.zeros(file["labels"].shape, np.uint8)
            labels[:, 0] = file["image"][...].max(axis=(1, 2, 3)) > 100
            file["labels"][...] = labels
    found = probe(out, manifest, samples)
    assert found.classes == ("class0", "any of the classes")
    assert found.above_chance


def test_unlabelled_rows_take_no_part(tmp_path):
    out, manifest, samples = write_data(tmp_path, mask=telling_shape)
    bare = [{**sample, "label": ""} for sample in samples]
    assert probe(out, manifest, bare).auc is None


def test_a_data_set_on_disk_is_probed_as_its_build_was(tmp_path):
    out, manifest, samples = write_data(tmp_path, column=lambda rng, label: {"vendor": "A"})
    during = probe(out, manifest, samples, seed=3)
    head = list(samples[0])
    lines = [",".join(head), *(",".join(str(sample[k]) for k in head) for sample in samples)]
    (out / "samples.csv").write_text("\n".join(lines) + "\n")
    write_manifest(out, manifest)
    assert probe_folder(out, seed=3) == during


def test_a_folder_without_data_set_is_refused(tmp_path):
    with pytest.raises(ShardError, match=r"no manifest\.json"):
        probe_folder(tmp_path)


def test_reading_may_be_shared_and_the_numbers_stay(tmp_path):
    out, manifest, samples = write_data(tmp_path, mask=telling_shape, patients=60)
    counts = []

    def backwards(function, tasks):
        done = {place: function(task) for place, task in reversed(list(enumerate(tasks)))}
        counts.append(len(done))
        return [done[place] for place in sorted(done)]

    assert probe(out, manifest, samples, mapper=backwards) == probe(out, manifest, samples)
    assert counts[0] > 2


def test_the_summary_holds_the_numbers_of_the_card(tmp_path):
    found = probe(*write_data(tmp_path, mask=telling_shape))
    summary = json.loads(json.dumps(found.summary()))
    assert summary["above_chance"]
    assert summary["area_under_curve"]["value"] == pytest.approx(found.auc, abs=1e-4)
    assert f"{summary['area_under_curve']['low']:.2f}" in found.sentence
    assert summary["held_out_patients"] == 48


def test_a_missing_shard_is_refused(tmp_path):
    out, manifest, samples = write_data(tmp_path, patients=4)
    (out / samples[0]["shard"]).unlink()
    with pytest.raises(ShardError, match="a shard that the manifest names is not there"):
        probe(out, manifest, samples)


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    out, manifest, samples = write_data(tmp_path, mask=telling_shape, patients=60)
    turned = list(reversed(samples))
    assert probe(out, manifest, turned) == probe(out, manifest, samples)


def test_large_sets_are_probed_on_whole_patients(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.probe.MOST_ROWS", 150)
    found = probe(*write_data(tmp_path, mask=telling_shape))
    assert found.held_out_patients < 48
    assert found.above_chance


def test_of_patients_with_many_pictures_some_are_looked_at(tmp_path, monkeypatch):
    out, manifest, samples = write_data(tmp_path, mask=telling_shape, patients=60, each=20)
    looked_at = []
    real = probe_module.read_rows

    def noted(out, manifest, chosen, **how):
        looked_at.extend(chosen)
        return real(out, manifest, chosen, **how)

    monkeypatch.setattr(probe_module, "read_rows", noted)
    assert probe(out, manifest, samples).above_chance
    counts = Counter(sample["subject_id"] for sample in looked_at)
    assert set(counts.values()) == {16}
    # Which ones depends on their order within the patient alone.
    places = {
        tuple(sorted(s["sample_id"][-2:] for s in looked_at if s["subject_id"] == name))
        for name in counts
    }
    assert len(places) == 1


def test_the_card_begins_with_a_warning_where_there_is_a_leak(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    leaking = card_section(probe(*write_data(tmp_path / "a", mask=telling_shape)))
    sound = card_section(probe(*write_data(tmp_path / "b")))
    assert leaking.startswith("> **Leak probe: warning.**")
    assert sound.startswith("Leak probe: a classifier that sees only outline")
    for text in (leaking, sound):
        assert "| outline |" in text
        assert "No nearly equal pictures were found" in text


class TestShapes:
    def test_a_box_has_its_own_numbers(self):
        mask = np.zeros((10, 20), dtype=bool)
        mask[2:6, 5:15] = True
        mask[5, 5] = False
        box = [0.2, 0.6, 0.25, 0.75, 0.4, 0.5]
        rows, columns = np.nonzero(mask)
        centroid = [rows.mean() / 10, columns.mean() / 20]
        expected = [39 / 200, *box, *centroid, 0.5 / 0.4, 39 / 40]
        np.testing.assert_allclose(shape_features(mask), expected)

    @pytest.mark.parametrize("width", [7, 8])
    def test_an_outline_and_its_mirror_image_are_one(self, width):
        mask = np.random.default_rng(width).uniform(size=(6, width)) < 0.3
        ours, is_right = facing_left(mask)
        theirs, is_left = facing_left(mask[:, ::-1])
        np.testing.assert_array_equal(ours, theirs)
        assert is_right != is_left
        columns = np.nonzero(ours)[1]
        assert columns.mean() < (width - 1) / 2

    def test_what_lies_in_the_middle_is_not_mirrored(self):
        mask = np.zeros((4, 6), dtype=bool)
        mask[1, 2:4] = True
        assert not facing_left(mask)[1]
        assert not facing_left(np.zeros((4, 6), dtype=bool))[1]

    def test_an_empty_picture_has_no_shape(self):
        assert not shape_features(np.zeros((8, 8), dtype=bool)).any()

    def test_every_channel_and_sign_counts(self):
        image = np.zeros((2, 3, 3), dtype=np.int16)
        image[1, 0, 0], image[0, 2, 2] = -5, 7
        assert np.argwhere(silhouette(image)).tolist() == [[0, 0], [2, 2]]

    @pytest.mark.parametrize("shape", [(37, 53), (16, 16), (5, 40)])
    def test_cells_hold_means(self, shape):
        picture = np.random.default_rng(0).uniform(size=shape)
        edges = [np.unique(np.linspace(0, n, 17).astype(int)) for n in shape]
        slow = [
            picture[a:b, c:d].mean()
            for a, b in zip(edges[0][:-1], edges[0][1:], strict=True)
            for c, d in zip(edges[1][:-1], edges[1][1:], strict=True)
        ]
        np.testing.assert_allclose(cell_means(picture, 16), slow, rtol=1e-5)


class TestDetail:
    """What two pictures are compared by."""

    def head(self, seed: int, side: int = 128) -> np.ndarray:
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[:side, :side] / side
        folds = sum(np.cos(rows * a + columns * b + c) for a, b, c in rng.uniform(-40, 40, (6, 3)))
        inside = (rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.16
        return np.where(inside, 400 + 60 * folds, 0.0)

    def alike(self, first: np.ndarray, second: np.ndarray) -> float:
        return float(np.corrcoef(detail(first), detail(second))[0, 1])

    def test_heads_of_one_outline_are_not_alike(self):
        assert max(self.alike(self.head(i), self.head(i + 1)) for i in range(8)) < 0.6

    def test_noise_and_contrast_leave_a_head_as_it_is(self):
        head, rng = self.head(0), np.random.default_rng(0)
        noise = np.where(head > 0, rng.normal(0, 10, head.shape), 0)
        assert self.alike(head, head + noise) > 0.93
        assert self.alike(head, 3 * head**1.2) > 0.98

    @pytest.mark.parametrize("picture", [np.zeros((40, 40)), np.ones((40, 40)), np.eye(40)])
    def test_a_picture_without_detail_has_none(self, picture):
        assert np.ptp(detail(picture)) == 0

    @pytest.mark.parametrize("shape", [(5, 40), (40, 5), (3, 3)])
    def test_a_small_picture_has_a_cell_for_each_pixel(self, shape):
        picture = np.random.default_rng(0).uniform(1, 2, shape)
        assert len(detail(picture)) == min(shape[0], 32) * min(shape[1], 32)


class TestScores:
    def test_the_area_is_that_of_scikit_learn_and_of_all_pairs(self):
        rng = np.random.default_rng(0)
        positive, scores = rng.uniform(size=80) < 0.4, rng.integers(0, 12, 80).astype(float)
        weights = rng.integers(0, 4, (5, 80)).astype(float)
        found = weighted_area(positive, scores, weights)
        np.testing.assert_allclose(found, all_pairs_area(positive, scores, weights))
        assert found[0] == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights[0]))

    def test_a_side_without_weight_has_no_area(self):
        positive = np.array([True, False])
        assert np.isnan(weighted_area(positive, np.zeros(2), np.array([[1.0, 0.0]]))).all()

    def test_one_score_for_all_is_chance(self):
        truth = np.repeat([[0.0], [1.0]], 20, axis=0)
        found = area_with_interval(truth, np.zeros((40, 1)), [f"p{i}" for i in range(40)], seed=0)
        assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)

    def test_copies_of_a_patient_do_not_narrow_the_interval(self):
        rng = np.random.default_rng(0)
        truth, scores = rng.integers(0, 2, (40, 1)).astype(float), rng.normal(size=(40, 1))
        names = np.arange(40).astype(str)
        once = area_with_interval(truth, scores, names, seed=0)
        many = area_with_interval(
            np.repeat(truth, 5, axis=0), np.repeat(scores, 5, axis=0), np.repeat(names, 5), seed=0
        )
        assert (many.value, many.low, many.high) == pytest.approx((once.value, once.low, once.high))

    def test_a_class_needs_patients_on_both_sides(self):
        truth = np.zeros((40, 3))
        truth[:20, 0], truth[:5, 1], truth[:15, 2] = 1, 1, 1
        assert judged_classes(truth, [f"p{i}" for i in range(40)]) == (0, 2)
        assert judged_classes(truth, ["p0"] * 20 + [f"p{i}" for i in range(20)]) == ()

    def test_of_two_classes_that_exclude_each_other_one_is_judged(self):
        truth = np.eye(2)[np.arange(40) % 2]
        assert judged_classes(truth, [f"p{i}" for i in range(40)]) == (1,)

    @pytest.mark.parametrize("held_out", [0, 5, 40])
    def test_no_patient_is_trained_and_tested_on(self, held_out):
        truth = np.eye(2)[np.arange(200) % 2]
        subjects = [f"p{i // 2}" for i in range(200)]
        splits = ["test" if i < 2 * held_out else "train" for i in range(200)]
        plan = make_plan(truth, subjects, splits, seed=0)
        assert plan is not None
        assert plan.is_crossed == (held_out < 10)
        for train, test in plan.rounds:
            assert {subjects[i] for i in train}.isdisjoint(subjects[i] for i in test)
        assert len(set(plan.tested.tolist())) == len(plan.tested)
        assert len(plan.tested) == (200 if plan.is_crossed else 2 * held_out)

    def test_columns_without_numbers_or_variation_are_borne(self):
        truth = np.eye(2)[np.arange(60) % 2]
        plan = make_plan(truth, [f"p{i}" for i in range(60)], ["train"] * 60, seed=0)
        assert plan is not None
        features = np.full((60, 2), np.nan)
        features[:, 1] = 7
        assert set(predict(features, None, truth, plan).ravel().tolist()) == {0.5}

    def test_the_interval_covers_chance_as_often_as_it_says(self):
        """Of 200 tests of pure noise some 5 lie above chance; 14 would be a chance of 1 in 2000."""
        rng = np.random.default_rng(0)
        names = np.arange(60).astype(str)
        alarms = sum(
            area_with_interval(
                rng.integers(0, 2, (60, 1)).astype(float), rng.normal(size=(60, 1)), names, seed=i
            ).low
            > 0.5
            for i in range(200)
        )
        assert alarms < 14


class TestNearDuplicates:
    @staticmethod
    def prints(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        hashes = rng.integers(0, 2, (count, 64)).astype(np.uint8)
        return hashes, rng.integers(0, 256, (count, 100)).astype(np.uint8)

    def test_strangers_are_no_duplicates(self):
        found = near_duplicates(*self.prints(60), ["train"] * 40 + ["test"] * 20)
        assert (found.pairs, found.pictures) == ({}, 0)

    def test_pairs_across_splits_are_counted_and_those_within_are_not(self):
        hashes, thumbnails = self.prints(60)
        for copy, original in ((45, 3), (50, 4), (51, 4), (1, 0)):
            hashes[copy], thumbnails[copy] = hashes[original], thumbnails[original]
            hashes[copy, :4] ^= 1
        splits = ["train"] * 40 + ["validation"] * 8 + ["test"] * 12
        found = near_duplicates(hashes, thumbnails, splits)
        assert found.pairs == {"train/validation": 1, "train/test": 2}
        assert found.pictures == 5

    def test_what_differs_in_hash_or_in_picture_is_no_duplicate(self):
        hashes, thumbnails = self.prints(40)
        hashes[30] = hashes[0]
        thumbnails[31] = thumbnails[1]
        assert near_duplicates(hashes, thumbnails, ["train"] * 20 + ["test"] * 20).pictures == 0

    def test_two_equal_pictures_alone_are_found(self):
        hashes, thumbnails = (np.repeat(part, 2, axis=0) for part in self.prints(1))
        assert near_duplicates(hashes, thumbnails, ["train", "test"]).pairs == {"train/test": 1}

    def test_blank_pictures_are_not_compared(self):
        hashes, thumbnails = np.zeros((4, 64), np.uint8), np.zeros((4, 100), np.uint8)
        assert near_duplicates(hashes, thumbnails, ["train", "test"] * 2).pictures == 0

    def test_blocks_do_not_change_the_count(self, monkeypatch):
        hashes, thumbnails = self.prints(30)
        hashes[20:], thumbnails[20:] = hashes[:10], thumbnails[:10]
        splits = ["train"] * 20 + ["test"] * 10
        whole = near_duplicates(hashes, thumbnails, splits)
        monkeypatch.setattr("pipelines.near_duplicates.BLOCK", 7)
        assert near_duplicates(hashes, thumbnails, splits) == whole
        assert whole.pairs == {"train/test": 10}

    def test_a_copy_under_another_name_is_told_on_the_card(self, tmp_path):
        first: list[np.ndarray] = []

        def copied(image, rng):
            rows, columns = np.mgrid[:SIZE, :SIZE]
            wave = np.sin(rows / rng.uniform(2, 9)) * np.cos(columns / rng.uniform(2, 9))
            picture = (image * (0.6 + 0.3 * wave)).astype(np.uint8)
            first.append(picture)
            last = len(first) == 80
            noise = rng.integers(0, 3, picture.shape)
            return np.where(first[0] > 0, first[0] + noise, 0).astype(np.uint8) if last else picture

        found = probe(*write_data(tmp_path, patients=40, alter=copied))
        assert found.near_duplicates.pairs == {"train/test": 1}
        assert "2 pictures have a near-duplicate in another split" in card_section(found)
