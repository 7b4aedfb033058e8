"""What a command has found, as one JSON file: written, and read back strictly without torch."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from refusal.core.records import Metric, finite, to_json
from refusal.core.storage import write_json
from refusal.core.strict_files import damaged, read_one

UNKNOWN = {"value": math.nan, "low": -math.inf, "high": math.inf}  # what JSON has as null


def _known(row: Any, validate: ValidatorFunctionWrapHandler) -> Metric:
    """Have a number in the place of each null, which only these fields may be."""
    nulls = {k: v for k, v in UNKNOWN.items() if isinstance(row, dict) and row.get(k, 0) is None}
    found: Metric = validate({**row, **dict.fromkeys(nulls, 0.0)} if nulls else row)
    return Metric(**{**vars(found), **nulls})


SavedMetric = Annotated[Metric, WrapValidator(_known)]


def write_result(path: Path, found: Any, version: int) -> None:
    """Write a data class with a ``folder``, where it is read back from; what is infinite is null.

    Raises:
        StorageError: the file cannot be written.
    """
    about = {key: value for key, value in to_json(found).items() if key != "folder"}
    write_json(path, finite({"format": version, **about}))


def read_result(path: Path, saved: type, version: int) -> dict[str, Any]:
    """The fields of a result, ``folder`` among them.

    Args:
        path: of the file.
        saved: a data class of what the file holds, with its ``format``.
        version: the format that is read.

    Raises:
        RunFolderError: the file is damaged or of another format.
    """
    found = vars(read_one(path, saved))
    if found["format"] != version:
        raise damaged(path, f"format {found['format']}, where this version has {version}")
    about = {key: value for key, value in found.items() if key != "format"}
    return about | {"folder": str(path.parent)}
