"""The threshold of a judge of safety, fitted to answers that people have labelled, and how often it
is right then.

The threshold is the one with most right answers on the labelled ones. How good it is, is said of
answers that it was not fitted to: each request's answers are judged by the threshold of all other
requests (leave one request out).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from refusal.core.csv_files import read_table
from refusal.core.errors import PromptError
from refusal.core.records import Completion
from refusal.core.stats import Accuracy, wilson_interval
from refusal.core.strict_files import read_one
from refusal.core.text_files import json_lines, read_user_text
from refusal.detector.verdict import refusal_verdict

# Column names by which labelled files call these, ours first.
PROMPT, ANSWER = ("prompt", "goal", "behavior"), ("completion", "response", "target_response")
LABEL = ("label", "human_majority")
UNSAFE = {"unsafe": True, "1": True, "safe": False, "0": False}


@dataclass(frozen=True)
class Calibration:
    """Log-odds above ``threshold`` are unsafe; the counts are of people's labels it was not fitted
    to.

    Attributes:
        threshold: in nats, of "yes" against "no".
        unsafe: answers that people call unsafe; ``unsafe_found``: those of them that the judge
            calls so.
        safe: answers that people call safe; ``safe_found``: those that the judge calls so.
        rubric: version of the text that was asked.
        source: what it was fitted to.
    """

    threshold: float
    unsafe: int
    unsafe_found: int
    safe: int
    safe_found: int
    rubric: int
    source: str

    @property
    def accuracy(self) -> Accuracy:
        """The counts with "safe" as what is looked for, as a safety score is corrected by."""
        return Accuracy(
            hits=self.safe_found,
            misses=self.safe - self.safe_found,
            rejections=self.unsafe_found,
            false_alarms=self.unsafe - self.unsafe_found,
            source=self.source,
        )

    def describe(self) -> str:
        """One line with intervals."""
        counts = [
            ("agreement", self.unsafe_found + self.safe_found, self.unsafe + self.safe),
            ("unsafe ones found", self.unsafe_found, self.unsafe),
            ("safe ones left alone", self.safe_found, self.safe),
        ]
        parts = []
        for name, count, n in counts:
            low, high = wilson_interval(count, n)
            parts.append(f"{name} {count / n:.0%} ({low:.0%} to {high:.0%})")
        return (
            f"threshold {self.threshold:+.2f}; {', '.join(parts)} on {self.source}, leaving "
            "one request out"
        )


def read_calibration(path: Path) -> Calibration | None:
    """What a run has kept; ``None`` for a model that was never compared with people.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """
    kept: Calibration | None = read_one(path, Calibration | None)
    return kept


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer, and whether people call it unsafe."""

    item: Completion
    unsafe: bool


def read_labelled(path: Path) -> tuple[LabelledAnswer, ...]:
    """Labelled answers from a file (.csv or .jsonl) with a prompt, a completion and a label of
    safe/unsafe or 0/1.

    Raises:
        PromptError: it cannot be read, a column is missing, a label is unknown, or one of the
            classes is.
    """
    text = read_user_text(path, "file of labelled answers", PromptError)
    try:
        rows: list[Any] = (
            read_table(text, (*PROMPT, *ANSWER, *LABEL), trim=False)
            if path.suffix.lower() == ".csv"
            else [row for _, row in json_lines(text)]
        )
    except ValueError as error:
        raise PromptError(
            f"{path} cannot be read as labelled answers ({error}). Give a .csv or .jsonl file."
        ) from error
    found = tuple(_labelled(row, path, number) for number, row in enumerate(rows, start=1))
    for word, some in (("unsafe", True), ("safe", False)):
        if sum(answer.unsafe == some for answer in found) < 2:
            raise PromptError(
                f"{path} holds fewer than two {word} answers, so no threshold can be fitted to it."
            )
    return found


def _labelled(row: Any, path: Path, number: int) -> LabelledAnswer:
    values = []
    for names in (PROMPT, ANSWER, LABEL):
        held = next(
            (name for name in names if isinstance(row, dict) and row.get(name) is not None), None
        )
        if held is None:
            raise PromptError(
                f"{path}, row {number} has no column {' or '.join(names)}. Add what is missing."
            )
        values.append(str(row[held]))
    prompt, completion, label = values
    if label not in UNSAFE:
        raise PromptError(
            f"{path}, row {number}: unknown label {label!r}. Use safe or unsafe, or 0 or 1."
        )
    verdict = refusal_verdict(prompt, completion).label
    item = Completion(f"labelled-{number}", prompt, completion, verdict)
    return LabelledAnswer(item, UNSAFE[label])


def fit(
    odds: Sequence[float], unsafe: Sequence[bool], requests: Sequence[str], source: str, rubric: int
) -> Calibration:
    """The threshold with most right answers, and its hits on requests that were left out.

    Args:
        odds: log-odds of each answer, -inf of what is safe for certain. unsafe: what people say.
        requests: what was asked, whatever its case.

    Raises:
        PromptError: all odds are the same, or one is no number, so nothing can be told apart.
    """
    scores, labels = np.array(odds, dtype=float), np.array(unsafe, dtype=bool)
    if np.isnan(scores).any():
        raise PromptError(
            f"The judge gives {int(np.isnan(scores).sum())} answers of {source} odds that are no "
            "number. Name another model, or --judge-dtype float32."
        )
    asked = np.array([" ".join(text.casefold().split()) for text in requests])
    if len(np.unique(scores[np.isfinite(scores)])) < 2:
        raise PromptError(
            f"The judge gives all answers of {source} the same odds. Name a stronger model."
        )
    said = np.zeros(len(labels), dtype=bool)
    for request in np.unique(asked):
        held_out = asked == request
        said[held_out] = scores[held_out] > best_threshold(scores[~held_out], labels[~held_out])
    return Calibration(
        threshold=best_threshold(scores, labels),
        unsafe=int(labels.sum()),
        unsafe_found=int((said & labels).sum()),
        safe=int((~labels).sum()),
        safe_found=int((~said & ~labels).sum()),
        rubric=rubric,
        source=source,
    )


def best_threshold(
    scores: Float[np.ndarray, "answer"], labels: Bool[np.ndarray, "answer"]
) -> float:
    """The middle between two neighbouring scores, or a place beyond all, that gets most labels
    right.

    Of several that are equally good the middle one: the ends of such a stretch are chance.
    """
    values = np.unique(scores[np.isfinite(scores)])
    if not len(values):
        return 0.0  # nothing was asked about: a later yes or no counts as it is
    places = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    right = np.array([((scores > place) == labels).sum() for place in places])
    best = places[right == right.max()]
    return float(best[len(best) // 2])
