import base64
import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from pipelines.pages import (
    CaseView,
    Table,
    cell,
    columns,
    data_uri,
    explanation_page,
    percent,
    render,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = '"><script>alert(1)</script>&'


class Reader(HTMLParser):
    """Elements and text of a page; refuses tags that do not nest."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def case(sample_id="k7m2", **changes):
    values = {
        "sample_id": sample_id,
        "label": "mild",
        "prediction": "severe",
        "probabilities": {"normal": 0.1, "mild": 0.3, "severe": 0.6},
        "images": [("scan", PNG, ""), ("attention-fine", PNG, "32 x 32 cells")],
        "notes": ["The peak lies in the right thigh."],
    }
    return CaseView(**(values | changes))


def test_page_shows_every_case_with_its_classes_pictures_and_notes():
    reader = Reader(explanation_page("Maps", cases=[case("aaaa"), case("bbbb")], intro=["Intro."]))
    for word in ("Maps", "Intro.", "aaaa", "bbbb", "0.600", "right thigh", "32 x 32 cells"):
        assert word in reader.text
    assert "true class mild , predicted severe ( wrong )" in reader.text
    assert len(reader.all("article")) == 2
    assert len(reader.all("img")) == 4


def test_tables_stand_after_the_summary_and_empty_ones_are_left_out():
    tables = [
        Table(heading="Verdicts", rows=[{"map": "lrp", "refused": 2}], note="Of 2."),
        Table(heading="Checks", rows=[]),
    ]
    page = explanation_page("Maps", cases=[case()], tables=tables, gallery="gallery.html")
    reader = Reader(page)
    assert "Verdicts Of 2. map refused lrp 2" in reader.text
    assert "Checks" not in reader.text
    assert {"href": "gallery.html"} in reader.all("a")


def test_every_picture_has_words_for_those_who_cannot_see_it():
    reader = Reader(explanation_page("Maps", cases=[case()]))
    alternatives = [image["alt"] for image in reader.all("img")]
    assert alternatives == [
        "scan of case k7m2",
        "attention-fine of case k7m2: 32 x 32 cells",
    ]


def test_page_is_one_file_without_network_and_without_script():
    page = explanation_page("Maps", cases=[case("a"), case("b")])
    reader = Reader(page)
    assert not reader.all("script")
    assert not reader.all("link")
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    policies = [item["content"] for item in reader.all("meta") if "http-equiv" in item]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_links_lead_to_the_cases():
    reader = Reader(explanation_page("Maps", cases=[case("a"), case("b")]))
    targets = {item["id"] for item in reader.all("article")}
    assert {item["href"][1:] for item in reader.all("a")} == targets


def test_pictures_travel_unchanged():
    page = explanation_page("Maps", cases=[case()])
    found = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert [base64.b64decode(item) for item in found] == [PNG, PNG]


def test_nothing_a_user_wrote_becomes_markup():
    evil = case(
        EVIL,
        label=EVIL,
        prediction=EVIL,
        probabilities={EVIL: 1.0},
        images=[(EVIL, PNG, EVIL)],
        notes=[EVIL],
    )
    page = explanation_page(EVIL, cases=[evil, evil], summary=[{EVIL: EVIL}], intro=[EVIL])
    reader = Reader(page)
    assert not reader.all("script")
    assert "alert(1)" not in "".join(name for name, _ in reader.elements)
    assert reader.text.count(EVIL) >= 10


def test_an_unknown_true_class_is_said_and_not_judged():
    reader = Reader(explanation_page("Maps", cases=[case(label="")]))
    assert "predicted severe (true class not known)" in reader.text
    assert "wrong" not in reader.text


def test_a_right_prediction_is_said_in_words():
    text = Reader(explanation_page("Maps", cases=[case(label="severe")])).text
    assert "predicted severe ( right )" in text


def test_page_without_cases_says_so():
    assert "No case to show." in Reader(explanation_page("Maps", cases=[])).text


def test_table_joins_the_columns_of_all_rows():
    rows = [{"method": "fine", "maps": 3}, {"method": "cam", "precision": 0.25}]
    assert columns(rows) == ["method", "maps", "precision"]
    reader = Reader(explanation_page("Maps", cases=[], summary=rows))
    assert "method maps precision fine 3 – cam – 0.250" in reader.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (12345.6, "12,346"), (7, "7"), ("a", "a"), ("", "–"), (None, "–"),
     (float("nan"), "–"), (float("inf"), "–")],
)  # fmt: skip
def test_cells_write_three_decimals_and_a_dash_for_what_is_missing(value, text):
    assert cell(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50.0%"), (-1.0, "0.0%"), (7.0, "100.0%"), (float("nan"), "0%")]
)
def test_bars_never_leave_their_track(share, text):
    assert percent(share) == text


def test_what_is_not_a_png_is_refused():
    with pytest.raises(
        ValueError, match="a picture of the page is not a PNG: it starts with b'<sv"
    ):
        data_uri(b"<svg/>")
    with pytest.raises(ValueError, match="not a PNG"):
        explanation_page("Maps", cases=[case(images=[("scan", b"", "")])])


def test_a_template_that_gets_too_little_fails_loudly():
    with pytest.raises(UndefinedError, match="title"):
        render("explanation.html", cases=[], summary=[], intro=[])
