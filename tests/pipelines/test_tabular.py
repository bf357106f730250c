"""One sheet in two languages: whatever a cell holds, it stays one cell."""

import re

import pytest

from pipelines.tabular import (
    Block,
    Cell,
    Sheet,
    latex_escaped,
    latex_lines,
    markdown_escaped,
    markdown_lines,
    plain_sheet,
)

EVIL = r"a_b & 50% #1 $x$ {y} \z ~^ <script>|[l](u)| *b* _c_ ± ×"


@pytest.fixture
def sheet() -> Sheet:
    return Sheet(
        heading=["maps", "AP ↑"],
        blocks=[
            Block(label="fine", rows=[[Cell("a"), Cell("1", best=True)], [Cell("b"), Cell("")]]),
            Block(label="", rows=[[Cell(EVIL), Cell("2")]]),
        ],
    )


def unescaped(text: str, character: str) -> int:
    return len(re.findall(rf"(?<!\\){re.escape(character)}", text))


class TestLatex:
    def test_balanced_and_as_wide_as_its_heading(self, sheet: Sheet) -> None:
        lines = latex_lines(sheet)
        text = "\n".join(lines)
        assert lines[0] == r"\begin{tabular}{lr}"
        assert lines[-1] == r"\end{tabular}"
        assert unescaped(text, "{") == unescaped(text, "}")
        rows = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
        assert [unescaped(row, "&") for row in rows] == [1] * 4
        assert r"\multicolumn{2}{l}{\emph{fine}} \\" in lines
        assert text.count(r"\midrule") == 2

    def test_the_best_alone_is_bold(self, sheet: Sheet) -> None:
        assert [line for line in latex_lines(sheet) if "textbf" in line] == [r"a & \textbf{1} \\"]

    @pytest.mark.parametrize("character", list("&%#_"))
    def test_special_characters_are_escaped(self, character: str) -> None:
        assert unescaped(latex_escaped(EVIL), character) == 0

    def test_dollars_pair_and_nothing_raw_is_left(self) -> None:
        text = latex_escaped(EVIL)
        assert unescaped(text, "$") == 4  # round ± and ×
        assert not set("<>|~^±×") & set(text)
        assert latex_escaped("\\") == r"\textbackslash{}"

    def test_a_bracket_after_a_line_is_no_skip(self) -> None:
        lines = latex_lines(plain_sheet(["[h]", "x"], [["[5pt]", "1"], ["*", "2"]]))
        assert "{[5pt]} & 1 \\\\" in lines
        assert "{*} & 2 \\\\" in lines


class TestMarkdown:
    def test_every_line_has_the_cells_of_the_heading(self, sheet: Sheet) -> None:
        lines = markdown_lines(sheet)
        assert {unescaped(line, "|") for line in lines} == {3}
        assert lines[2:4] == ["| *fine* |  |", "| a | **1** |"]

    def test_text_becomes_neither_html_nor_emphasis_nor_a_link(self) -> None:
        text = markdown_escaped(EVIL)
        assert "<" not in text
        assert r"\*b\*" in text
        assert r"\_c\_" in text
        assert "a_b" in text  # inside a word it is plain
        assert r"[l\](u)" in text

    def test_lines_do_not_break(self) -> None:
        assert "\n" not in markdown_escaped("a\nb") + latex_escaped("a\r\nb")
