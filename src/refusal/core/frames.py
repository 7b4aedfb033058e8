"""How records show themselves in a notebook and become data frames, without knowing who draws them.

``refusal.report.notebook`` draws. It is built on the records, so it tells them how (``drawn_by``)
when it is imported, and that is when the first record is shown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refusal.core.errors import UsageError

if TYPE_CHECKING:
    import pandas

_drawn: dict[type, Callable[[Any], str]] = {}


def drawn_by(record: type, draw: Callable[[Any], str]) -> None:
    """Let ``draw`` make the HTML of records of that type."""
    _drawn[record] = draw


class NotebookRecord:
    """A record that a notebook shows as more than its text."""

    def _repr_html_(self) -> str | None:
        import_module("refusal.report.notebook")
        draw = _drawn.get(type(self))
        return draw(self) if draw is not None else None


def dataframe(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> "pandas.DataFrame":
    """Rows as a data frame, with those columns also where there are no rows.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UsageError(
            "Data frames need pandas. Install it with: pip install 'refusal[notebook]'."
        ) from error
    return pandas.DataFrame(list(rows), columns=list(columns))


def records_dataframe(records: Iterable[Any], kind: type) -> "pandas.DataFrame":
    """Records of a data class, one a row.

    Raises:
        UsageError: pandas is not installed.
    """
    return dataframe(map(asdict, records), [field.name for field in fields(kind)])
