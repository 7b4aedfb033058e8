"""What every engine is given, and what it offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from refusal.core.direction import Direction
from refusal.core.turns import Question
from refusal.model.chat_model import ChatModel


@dataclass(frozen=True)
class Job:
    """Completions to be written.

    Attributes:
        model, direction, condition: what the condition does to the model.
        instructions: one user turn or conversation each. max_new_tokens: length of the completions.
        name: what the work is called on the display.
    """

    model: ChatModel
    direction: Direction
    condition: str
    instructions: Sequence[Question]
    max_new_tokens: int
    name: str


@runtime_checkable
class Engine(Protocol):
    """Somebody who writes completions.

    Attributes:
        elsewhere: the work is done by another process, which one process of a run asks for all.
    """

    elsewhere: bool

    @staticmethod
    def serves(condition: str) -> bool:
        """Whether it can write under that condition."""
        ...

    def generate(self, job: Job) -> list[str]:
        """Greedy completions of a job's instructions, in their order, under a condition that it
        serves.

        Raises:
            EngineError: a server that cannot be asked, or that does not serve this model.
        """
        ...

    def close(self) -> None:
        """Let go of what was started."""
        ...
