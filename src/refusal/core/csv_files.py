"""Tables in CSV that a user names: commas, semicolons or tabs, strict about quotes, rows and column
names.

A quote that is never closed swallows the rows after it, and most readers say nothing: here it is an
error that names the line where it opens.
"""

import csv
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import zip_longest

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

Row = dict[str, str | None]  # by lower-case column name; ``None`` is a cell that a short row lacks


def read_table(
    text: str, known: Collection[str], separator: str | None = None, trim: bool = True
) -> list[Row]:
    """The rows below the header, blank ones left out; every row is by lower-case column name.

    Args:
        known: column names in lower case, by which the separator is found out.
        separator: where it is not to be found out.
        trim: leave out spaces before a cell; a quote after them then opens it.

    Raises:
        ValueError: unclosed or stray quotes, two columns of one name, a row longer than the header,
            a short row that goes over several lines, or a header that can be read with two
            separators.
    """
    with _cells_of_any_length(len(text)):
        separator = separator or _separator(text, known)
        many = SEPARATORS[separator]
        rows = _rows(text, separator, trim)
        header = next(rows, (0, 0, []))[2]
        names = []
        for n, cell in enumerate(header, start=1):
            names.append(cell.strip().lower() or f"(column {n}, without a name)")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two columns are called {twice!r}. Rename or drop one of them")
        found = []
        for number, (first, last, cells) in enumerate(rows, start=1):
            if len(cells) > len(names):
                raise ValueError(
                    f"line {first}, row {number} has more cells than the header. Put text that "
                    f"holds {many} in quotes"
                )
            if len(cells) < len(names) and last > first:
                raise ValueError(
                    f"the row of line {first} to {last}, where a quote is still open at the end "
                    f"of line {first}, has {len(cells)} of {len(names)} cells. Close the quote "
                    "where its cell ends"
                )
            found.append(dict(zip_longest(names, cells)))
    return found


def _separator(text: str, known: Collection[str]) -> str:
    """The separator with which most column names are known; a comma where none are."""
    scores: dict[str, int] = {}
    headers: dict[str, list[str]] = {}
    for separator in SEPARATORS:
        try:
            headers[separator] = [
                cell.strip().lower() for cell in next(_rows(text, separator), (0, 0, []))[2]
            ]
        except ValueError:  # with another separator the quotes of a header may be at odd places
            continue
        scores[separator] = sum(name in known for name in headers[separator])
    best = max(scores.values(), default=0)
    if best == 0:
        return ","
    first, *others = [separator for separator, score in scores.items() if score == best]
    for other in others:
        if headers[other] != headers[first]:
            raise ValueError(
                f"its header can be read with {SEPARATORS[first]} and with {SEPARATORS[other]} "
                "between the names. Put names that hold one of them in quotes"
            )
    return first


def _rows(text: str, separator: str, trim: bool = True) -> Iterator[tuple[int, int, list[str]]]:
    """First line, last line and cells of every row that is not blank."""
    lines = text.split("\n")
    reader = csv.reader(
        (line + "\n" for line in lines), delimiter=separator, strict=True, skipinitialspace=trim
    )
    end = 0
    while True:
        start = end + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            opens, closes = _last_quote(lines, start, separator)
            if closes is None:
                raise ValueError(
                    f"the quote that opens in line {opens} is never closed. Close it where the "
                    "cell ends"
                ) from error
            raise ValueError(
                f"the quote that opens in line {opens} closes in line {closes}, but its cell goes "
                "on. Close it where the cell ends, and write quotes inside such a cell twice"
            ) from error
        end = reader.line_num
        if any(cell.strip() for cell in cells):
            yield start, end, cells


def _last_quote(lines: list[str], start: int, separator: str) -> tuple[int, int | None]:
    """From line ``start`` on, where a row begins: the cell in quotes that is not in order, by its
    first and last line.

    The last line is ``None`` if the quote is never closed.
    """
    text = "\n".join(lines[start - 1 :])
    end = re.escape(separator)
    in_order = re.compile(rf' *+(?:"[^"]*(?:""[^"]*)*"|(?!")[^{end}\n]*)(?:{end}|\n|\Z)')
    place = 0
    while (cell := in_order.match(text, place)) and cell.end() > place:
        place = cell.end()
    opens = text.index('"', place)
    closed = re.compile(r'"[^"]*(?:""[^"]*)*"').match(text, opens)
    line = start + text.count("\n", 0, opens)
    return line, line + closed.group().count("\n") if closed else None


@contextmanager
def _cells_of_any_length(length: int) -> Iterator[None]:
    """The csv module refuses cells over 128 kB: an unclosed quote would be answered with that."""
    before = csv.field_size_limit(length + 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
