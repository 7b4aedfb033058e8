"""Completions and judgements read back from a run: are they of these prompts, and of each other?

What is judged in several goes, or by several judges, is only worth comparing if every row is about
the same completion. A row that is not is an error, never dropped.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from refusal.core.errors import RunFolderError
from refusal.core.records import Completion
from refusal.evaluations.judges.judgement import Judgement
from refusal.evaluations.refusal.matching import check_ids

_ROW = TypeAdapter(Judgement)


def match_judgements(
    judgements: Sequence[Judgement], completions: Sequence[Completion], where: str
) -> dict[str, Judgement]:
    """The judgement of each completion that has one, by the completion's key.

    A failed judgement may be followed by a later try, which then counts; a valid one may not.

    Raises:
        RunFolderError: a judgement of no completion, or a second one beside a valid one.
    """
    found: dict[str, Judgement] = {}
    for judgement in judgements:
        if judgement.prompt_id not in found or found[judgement.prompt_id].failed:
            found[judgement.prompt_id] = judgement
        else:
            raise RunFolderError(
                f"{where} judges {judgement.prompt_id} twice. Delete it to judge again."
            )
    check_ids(list(found), [c.key for c in completions], where, "judgement")
    return found


def unjudged(
    judgements: Sequence[Judgement], completions: Sequence[Completion], where: str
) -> list[Completion]:
    """The completions that still need asking: without a judgement, or with a failed one. Raises as
    above.
    """
    found = match_judgements(judgements, completions, where)
    return [c for c in completions if c.key not in found or found[c.key].failed]


def read_judgements(path: Path) -> list[Judgement]:
    """The rows of a file of judgements, one JSON object a line; a last line cut off by an
    interruption is left out.

    Raises:
        RunFolderError: unreadable, or a row that is no judgement.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}). Delete it to judge again."
        ) from error
    rows = []
    for number, line in enumerate(
        lines[:-1], start=1
    ):  # what follows the last line end is empty, or cut off
        try:
            rows.append(_ROW.validate_json(line, strict=True))
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise RunFolderError(
                f"Line {number} of {path} is no judgement ({said}). Delete it to judge again."
            ) from error
    return rows
