"""The committed table of families says what is measured."""

from pathlib import Path

import families_table
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "families.md"


@pytest.mark.slow
def test_the_page_has_the_verdicts_that_are_measured() -> None:
    lines = [
        line.strip("|").split("|")
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line[:1] == "|"
    ]
    heads = [head.strip() for head in lines[0]]
    assert heads == ["family", *families_table.COLUMNS]
    written = {
        cells[0].strip(): dict(zip(heads[1:], (c.strip() for c in cells[1:]), strict=True))
        for cells in lines[2:]
    }
    measured = families_table.table()
    assert list(written) == list(measured)
    for family, row in measured.items():
        for column, cell in row.items():
            assert written[family][column].startswith(cell.verdict), (family, column, str(cell))
            assert not cell.verdict.startswith("NO"), (family, column, str(cell))
