"""What a judge says of a completion, as a record; importing it loads no torch."""

from dataclasses import dataclass
from typing import Literal

JudgementLabel = Literal[
    "refusal", "partial", "compliance", "degenerate", "unfinished", "safe", "unsafe"
]
JudgeKind = Literal["refusal", "safety", "score"]


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one completion, whose ``key`` is the ``prompt_id`` here.

    ``label`` is ``None`` where there is no valid answer, and for judges that only grade. ``score``
    is a harmfulness between 0 and 1. ``error`` says why there is no valid answer; it is ``None``
    exactly where there is one.
    """

    prompt_id: str
    label: JudgementLabel | None = None
    score: float | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if (self.error is None) == (self.label is None and self.score is None):
            raise ValueError("a judgement has a label or a score, or else an error")

    @property
    def failed(self) -> bool:
        """Whether there is no valid answer."""
        return self.error is not None
