import io

import h5py
import matplotlib
import matplotlib.image
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pipelines import qc, thumbnails
from pipelines.resampling import inverted_grey, resample
from preprocessing.errors import OutputError, ShardError
from preprocessing.layout import set_text

CLASSES = ["normal", "mild"]


def row(index=0, label="mild", value=3.0, aspect=1.0):
    pixels = np.full((40, 30), value, dtype=np.float32)
    return thumbnails.thumbnail(
        thumbnails.Row(
            sample_id=f"{index:08d}-abcdefgh",
            label=label,
            split="train",
            pixels=pixels,
            aspect=aspect,
        )
    )


def read_rows(*arguments):
    return [row for task in thumbnails.tasks(*arguments) for row in thumbnails.read_rows(task)]


def picture(path):
    return np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(int)


def write_shard(path, *, rows, fields=("image", "suv"), spacing=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        set_text(file, "encoding-type", "dualwitness-shard")
        set_text(file, "encoding-version", "1.0")
        file["label"] = np.zeros(rows, dtype=np.int64)
        file["image"] = rng.integers(0, 255, (rows, 1, 32, 32)).astype(np.uint8)
        if "suv" in fields:
            suv = np.zeros((rows, 32, 32), dtype=np.float16)
            suv[:, 8:24, 8:24] = 1.0 + np.arange(rows)[:, None, None]
            file["suv"] = suv
        if spacing is not None:
            affine = np.diag([*spacing[::-1], 1.0])
            file["volume_affine"] = np.repeat(affine[None], rows, axis=0)
            file["volume_shape"] = np.repeat([[100, 50, 50]], rows, axis=0).astype(np.int32)


def build(tmp_path, *, fields=("image", "suv"), **options):
    shards = []
    samples = []
    for split, rows in (("train", 3), ("test", 2)):
        name = f"shards/{split}-00000-of-00001.h5"
        write_shard(tmp_path / name, rows=rows, fields=fields, **options)
        shards.append({"file": name, "sha256": "0" * 64, "rows": rows, "split": split})
        samples += [
            {
                "sample_id": f"{split}{index}",
                "subject_id": f"{split}{index}",
                "split": split,
                "label": CLASSES[index % 2] if index < 2 else "",
                "shard": name,
                "row": index,
            }
            for index in range(rows)
        ]
    return {"classes": CLASSES, "fields": list(fields), "shards": shards}, samples


def test_a_sheet_shows_suv_as_inverted_grey(tmp_path):
    rows = [
        row(0, value=0.0),
        row(1, value=thumbnails.WINDOW_SUV / 2),
        row(2, value=thumbnails.WINDOW_SUV),
    ]
    qc.write_contact_sheet(rows, tmp_path / "sheet.png")
    pixels = picture(tmp_path / "sheet.png")
    step = qc.THUMBNAIL_WIDTH + 10
    seen = [pixels[34 + 60, 10 + 60 + step * column, 0] for column in range(3)]
    assert seen == [255, 128, 0] or seen == [255, 127, 0]


def test_a_sheet_writes_under_every_thumbnail(tmp_path):
    qc.write_contact_sheet([row(index, value=0.0) for index in range(12)], tmp_path / "sheet.png")
    pixels = picture(tmp_path / "sheet.png")
    size, caption = qc.THUMBNAIL_WIDTH, 34
    for index in range(12):
        line, column = divmod(index, qc.COLUMNS)
        top = 34 + line * (size + caption + 10) + size + 2
        left = 10 + column * (size + 10)
        assert pixels[top : top + caption, left : left + size].min() < 120


def test_labels_change_the_sheet(tmp_path):
    for name, label in (("a", "mild"), ("b", "normal")):
        qc.write_contact_sheet([row(label=label)], tmp_path / name)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_a_long_label_stays_in_its_cell(tmp_path):
    qc.write_contact_sheet([row(label="x" * 60, value=0.0), row(value=0.0)], tmp_path / "a")
    qc.write_contact_sheet([row(label="x" * 90, value=0.0), row(value=0.0)], tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("aspect", "size"), [(2.3, (230, 100)), (0.5, (65, 130)), (1.0, (130, 130)), (99.0, (230, 23))]
)
def test_thumbnails_keep_the_proportions_of_the_body(tmp_path, aspect, size):
    qc.write_contact_sheet(
        [row(value=thumbnails.WINDOW_SUV, aspect=aspect)], tmp_path / "sheet.png"
    )
    black = (picture(tmp_path / "sheet.png")[34:264] == 0).all(axis=-1)
    rows, columns = np.nonzero(black)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == size


def test_binning_first_changes_no_thumbnail_visibly(tmp_path):
    y, x = np.mgrid[0:512, 0:512] / 512
    smooth = (3 * (1 + np.sin(9 * y) * np.cos(7 * x))).astype(np.float32)
    shown = thumbnails.Row(sample_id="a", label="mild", split="test", pixels=smooth, aspect=2.3)
    qc.write_contact_sheet([thumbnails.thumbnail(shown)], tmp_path / "sheet.png")
    drawn = picture(tmp_path / "sheet.png")[34:264, 10 + 15 : 10 + 115, 0]
    whole = inverted_grey(resample(smooth, 230, 100), thumbnails.WINDOW_SUV)[..., 0].astype(int)
    assert np.abs(drawn - whole).max() <= 4


def test_pages_hold_a_hundred(tmp_path):
    rows = (row(index) for index in range(205))
    written = qc.write_contact_sheets(rows, tmp_path, total=205, told="")
    assert [path.name for path in written] == [f"contact-sheet-{n:03d}.png" for n in (1, 2, 3)]
    heights = [picture(path).shape[0] for path in written]
    assert heights[0] == heights[1] > heights[2]


def test_no_samples_give_no_page(tmp_path):
    assert qc.write_contact_sheets(iter(()), tmp_path, total=0, told="") == ()


def test_everything_is_written_twice_alike_and_names_nobody(tmp_path):
    manifest, samples = build(tmp_path)
    first = {path.name: path.read_bytes() for path in qc.write_all(tmp_path, manifest, samples)}
    again = {
        path.name: path.read_bytes() for path in qc.write_all(tmp_path, manifest, samples[::-1])
    }
    assert first == again
    assert first.keys() == {"contact-sheet-001.png", "suv-histogram.png"}
    for content in first.values():
        assert content.startswith(b"\x89PNG")
        assert b"Software" not in content
        assert b"tEXt" not in content
        assert str(tmp_path).encode() not in content


def test_rows_come_from_the_shards(tmp_path):
    manifest, samples = build(tmp_path, spacing=(6.0, 4.0, 3.0))
    rows = read_rows(tmp_path, manifest, samples)
    assert [r.sample_id for r in rows] == ["test0", "test1", "train0", "train1", "train2"]
    assert [float(r.pixels.max()) for r in rows] == [1.0, 2.0, 1.0, 2.0, 3.0]
    assert rows[4].label == "no label"
    several = [{**sample, "label": "", "findings": "Effusion|Mass"} for sample in samples]
    assert {r.label for r in read_rows(tmp_path, manifest, several)} == {"Effusion|Mass"}
    assert {r.aspect for r in rows} == {100 * 6.0 / (50 * 3.0)}
    padded = manifest | {"config": {"keep_aspect": True}}
    assert {r.aspect for r in read_rows(tmp_path, padded, samples)} == {1.0}


def test_data_sets_without_suv_show_their_picture_as_it_is(tmp_path):
    manifest, samples = build(tmp_path, fields=("image",))
    written = qc.write_all(tmp_path, manifest, samples)
    assert [path.name for path in written] == ["contact-sheet-001.png"]
    shown = read_rows(tmp_path, manifest, samples[:1])[0]
    with h5py.File(tmp_path / "shards" / "train-00000-of-00001.h5") as file:
        stored = file["image"][0, 0].astype(float)
    brightness = 1 - shown.pixels / thumbnails.WINDOW_SUV
    span = stored.max() - stored.min()
    np.testing.assert_allclose(brightness, (stored - stored.min()) / span, atol=1e-5)


def test_the_histogram_counts_the_body_of_each_class():
    histogram = qc.SuvHistogram(("normal", "mild"))
    pixels = np.array([[0.0, 0.05, 0.55, 0.55], [2.01, 99.0, 14.99, 0.09]], dtype=np.float32)

    def counted(label):
        return thumbnails.thumbnail(
            thumbnails.Row(sample_id="a", label=label, split="train", pixels=pixels)
        )

    histogram.add(counted("mild"))
    assert histogram.samples == {"normal": 0, "mild": 1}
    assert_array_equal(histogram.counts["normal"], 0)
    counts = histogram.counts["mild"]
    assert counts.sum() == 5
    assert (counts[5], counts[20], counts[-1]) == (2, 1, 2)
    histogram.add(counted("no label"))
    assert histogram.counts["no label"].sum() == 5


def test_the_histogram_shows_a_line_per_class_that_occurs(tmp_path):
    def drawn(labels):
        histogram = qc.SuvHistogram(("normal", "mild"))
        for index, label in enumerate(labels):
            histogram.add(row(index, label=label, value=1.0 + index))
        qc.write_suv_histogram(histogram, tmp_path / "h.png")
        return (tmp_path / "h.png").read_bytes()

    pictures = [drawn([]), drawn(["normal"]), drawn(["mild"]), drawn(["normal", "mild"])]
    assert len(set(pictures)) == 4


def test_users_plot_settings_change_nothing(tmp_path):
    histogram = qc.SuvHistogram(("normal",))
    histogram.add(row(label="normal"))
    qc.write_suv_histogram(histogram, tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        qc.write_suv_histogram(histogram, tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_of_many_slices_a_few_of_each_patient_are_shown():
    samples = [
        {"sample_id": f"{n:04d}", "subject_id": f"{n % 3 if n < 90 else 'rare'}"} for n in range(91)
    ]
    chosen = thumbnails.shown({"fields": ["image"]}, samples[::-1])
    assert chosen == thumbnails.shown({"fields": ["image"]}, samples)
    of = [sample["subject_id"] for sample in chosen]
    assert {name: of.count(name) for name in set(of)} == {"0": 4, "1": 4, "2": 4, "rare": 1}
    places = [int(sample["sample_id"]) for sample in chosen if sample["subject_id"] == "0"]
    assert places == sorted(places)
    assert min(places) < 20 < 70 < max(places)
    assert len(thumbnails.shown({"fields": ["suv"]}, samples)) == 91


def test_a_sheet_of_some_samples_says_of_how_many(tmp_path, monkeypatch):
    manifest, samples = build(tmp_path, fields=("image",))
    titles = []
    monkeypatch.setattr(qc, "write_contact_sheet", lambda _, path, title: titles.append(title))
    qc.write_all(tmp_path, manifest, samples)
    monkeypatch.setattr(thumbnails, "MOST_SHOWN", 2)
    qc.write_all(tmp_path, manifest, samples)
    assert titles == ["page 1 of 1   5 samples", "page 1 of 1   2 of 5 samples"]


def test_a_missing_shard_is_told(tmp_path):
    manifest, samples = build(tmp_path)
    (tmp_path / manifest["shards"][0]["file"]).unlink()
    with pytest.raises(ShardError, match="a shard that the manifest names is not there"):
        qc.write_all(tmp_path, manifest, samples)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "gone").mkdir()
    path = tmp_path / "gone" / "sheet.png"
    (tmp_path / "gone").rmdir()
    with pytest.raises(OutputError, match="disk"):
        qc.write_contact_sheet([row()], path)


def test_png_is_readable_from_memory(tmp_path):
    qc.write_contact_sheet([row()], tmp_path / "sheet.png")
    assert matplotlib.image.imread(io.BytesIO((tmp_path / "sheet.png").read_bytes())).ndim == 3
