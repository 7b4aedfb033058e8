"""Rows of local benchmark files, checked, in the columns that lm-eval's own tasks read.

Each model takes the columns of the data set on the hub. ARC and TruthfulQA are also found in a flat
form (question as ``centerpiece``, choices as ``options``), which is turned into the hub's.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from refusal.core.errors import ConfigError
from refusal.core.text_files import parse_json, read_user_text

Text = Annotated[str, Field(min_length=1)]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Row(BaseModel):
    """One item; columns that no task reads are left out."""


class LabelledChoices(BaseModel):
    """ARC's choices: texts, and the labels that the answer key names."""

    text: Annotated[list[Text], Field(min_length=2)]
    label: list[str]


class Arc(Row):
    """An item of ARC, easy or challenge."""

    question: Text
    choices: LabelledChoices
    answerKey: str

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, row: Any) -> Any:
        if not isinstance(row, dict) or "centerpiece" not in row:
            return row
        labels = list(LETTERS[: len(row["options"])])
        return {
            "question": row["centerpiece"],
            "choices": {"text": row["options"], "label": labels},
            "answerKey": labels[_only(row["correct_options_idx"])],
        }

    @model_validator(mode="after")
    def _key_is_a_label(self) -> "Arc":
        if (
            len(self.choices.text) != len(self.choices.label)
            or self.answerKey not in self.choices.label
        ):
            raise ValueError(
                f"the answer key {self.answerKey!r} names none of the {len(self.choices.text)} "
                "choices"
            )
        return self


class MarkedChoices(BaseModel):
    """TruthfulQA's choices: 1 marks the true one."""

    choices: Annotated[list[Text], Field(min_length=2)]
    labels: list[int]


class TruthfulQA(Row):
    """An item of TruthfulQA's multiple choice with one true answer, which comes first, as on the
    hub.
    """

    question: Text
    mc1_targets: MarkedChoices

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, row: Any) -> Any:
        if not isinstance(row, dict) or "centerpiece" not in row:
            return row
        texts = list(row["options"])
        texts.insert(0, texts.pop(_only(row["correct_options_idx"])))
        marks = [1] + [0] * (len(texts) - 1)
        return {"question": row["centerpiece"], "mc1_targets": {"choices": texts, "labels": marks}}

    @model_validator(mode="after")
    def _true_one_first(self) -> "TruthfulQA":
        if self.mc1_targets.labels != [1] + [0] * (len(self.mc1_targets.choices) - 1):
            raise ValueError("the true answer must be the first choice, and the only one")
        return self


class Mmlu(Row):
    """An item of MMLU; ``answer`` is the index of the right choice."""

    question: Text
    subject: Text
    choices: Annotated[list[str], Field(min_length=4, max_length=4)]
    answer: Annotated[int, Field(ge=0, le=3)]


class HellaSwag(Row):
    """An item of HellaSwag; ``label`` is the index of the right ending, in digits."""

    activity_label: str
    ctx_a: str
    ctx_b: str
    endings: Annotated[list[Text], Field(min_length=4, max_length=4)]
    label: Annotated[str, Field(pattern="^[0-3]$")]


class Gsm8k(Row):
    """A problem of GSM8K; the answer ends in ``#### <number>``."""

    question: Text
    answer: Annotated[str, Field(pattern="####")]


def read_rows(path: Path, kind: type[Row]) -> list[dict[str, Any]]:
    """The items of a file with one JSON object a line.

    Raises:
        ConfigError: unreadable, empty, or a line is no such item.
    """
    # Not splitlines: that also splits at the rarer separators of Unicode, which may stand inside a
    # string.
    lines = read_user_text(
        path, "benchmark file", ConfigError, "Give the file as it was published."
    ).split("\n")
    rows = [_row(path, n, line, kind) for n, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise ConfigError(f"{path} holds no items. Give the file as it was published.")
    return rows


def _row(path: Path, n: int, line: str, kind: type[Row]) -> dict[str, Any]:
    try:
        return kind.model_validate(parse_json(line)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f"{where}: {first['msg']}" if where else first["msg"]
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:  # no JSON, or a flat form that is not complete
        problem = f"{type(error).__name__}: {error}"
    raise ConfigError(
        f"{path}, line {n} is no item of {kind.__name__} ({problem}). Give the file as it was "
        "published."
    )


def _only(indices: list[int]) -> int:
    (index,) = indices
    return index
