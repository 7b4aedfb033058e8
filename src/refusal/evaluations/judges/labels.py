"""Labels that people gave, as a judge: to see how far the other judges agree with them.

A file of rows (.jsonl or .csv) with ``prompt_id``, ``completion`` and ``label``, as one gets by
adding a label to the rows of a run's completions. A completion without a label counts as failed,
like any other answer that is not there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from refusal.config.judges import JudgeOptions
from refusal.core.csv_files import read_table
from refusal.core.errors import PromptError
from refusal.core.records import Completion
from refusal.core.text_files import json_lines, read_user_text, user_path
from refusal.core.work import Work
from refusal.evaluations.judges.judgement import JudgeKind, Judgement, JudgementLabel
from refusal.evaluations.judges.protocol import Judge

SAFETY = ("safe", "unsafe")


class LabelsJudge(Judge):
    """Labels from a file.

    Attributes:
        kind: what the labels are.
        unmatched: the labels that no completion has asked for yet, by (prompt id, completion).
    """

    argument = "FILE"
    needs = "a file of labels"
    given = True

    def __init__(self, kind: str, model: str, options: JudgeOptions) -> None:
        """Read the file, which stands in the place of a model.

        Raises:
            PromptError: it cannot be read, holds no labels, unknown ones, or two for one
                completion.
        """
        super().__init__(kind, model, options)
        self.path = path = user_path(model, PromptError)
        self._labels: dict[tuple[str, str], JudgementLabel] = {}
        for number, row in enumerate(_rows(path), start=1):
            key, label = _entry(row, f"{path}, row {number}")
            if self._labels.setdefault(key, label) != label:
                raise PromptError(
                    f"{path}, row {number} labels {key[0]} again, as {label}. Keep one label for "
                    "each."
                )
        kinds = {label in SAFETY for label in self._labels.values()}
        if len(kinds) != 1:
            what = "labels of refusal beside labels of safety" if kinds else "no labels"
            raise PromptError(f"{path} holds {what}. Give one kind, a label a row.")
        self.kind: JudgeKind = "safety" if kinds == {True} else "refusal"
        self.unmatched = set(self._labels)

    @classmethod
    def costs(cls, model: str, options: JudgeOptions, n: int, length: float) -> Sequence[Work]:
        """Nothing that counts."""
        return ()

    def judge(self, items: Sequence[Completion]) -> Iterator[Judgement]:
        """The label of each completion that has one."""
        for item in items:
            key = (item.prompt_id, item.completion)
            label = self._labels.get(key)
            self.unmatched.discard(key)
            yield Judgement(item.key, label, error=None if label else "not labelled")

    def finish(self) -> None:
        """Look whether every label was of a completion that was asked about.

        Raises:
            PromptError: one was not.
        """
        if self.unmatched:
            raise PromptError(
                f"{len(self.unmatched)} of {len(self._labels)} labels in {self.path} are of no "
                f"completion of this run, the first of prompt {min(self.unmatched)[0]!r}. Give "
                "labels of this run's own completions."
            )


def _rows(path: Path) -> Sequence[Any]:
    text = read_user_text(path, "file of labels", PromptError)
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise PromptError(
            f"{path} cannot be read as labels: unknown kind of file {kind!r}. Give a .jsonl or "
            ".csv file."
        )
    try:
        if kind == ".csv":  # completions begin with a space at times
            return read_table(text, ("prompt_id", "completion", "label"), trim=False)
        return [row for _, row in json_lines(text)]
    except ValueError as error:
        raise PromptError(f"{path} cannot be read as labels: {error}. Mend the file.") from error


def _entry(row: Any, where: str) -> tuple[tuple[str, str], JudgementLabel]:
    known = get_args(JudgementLabel)
    try:
        key, label = (str(row["prompt_id"]), str(row["completion"])), row["label"]
    except (KeyError, TypeError) as error:
        raise PromptError(
            f"{where} has no prompt_id, completion and label. Add what is missing."
        ) from error
    if None in (row["prompt_id"], row["completion"]):  # a short row of a table, or null
        raise PromptError(
            f"{where} has no prompt_id or no completion. Fill it in, or leave the row out."
        )
    if label not in known:
        raise PromptError(f"{where}: unknown label {label!r}. Use one of {', '.join(known)}.")
    return key, label
