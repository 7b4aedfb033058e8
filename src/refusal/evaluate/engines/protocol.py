"""What every engine offers."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from refusal.model import ChatModel
from refusal.records import Direction


@runtime_checkable
class Engine(Protocol):
    """Somebody who writes completions.

    Attributes:
        elsewhere: the work is done by another process, which one process of a run asks for all.
    """

    elsewhere: bool

    def serves(self, condition: str) -> bool:
        """Whether it can write under that condition."""
        ...

    def complete(
        self,
        model: ChatModel,
        direction: Direction,
        condition: str,
        instructions: Sequence[str],
        max_new_tokens: int,
        name: str,
    ) -> list[str]:
        """Greedy completions of ``instructions``, in their order, under a condition that it serves.

        Args:
            name: what the work is called on the display.

        Raises:
            EngineError: a server that cannot be asked, or that does not serve this model.
        """
        ...

    def close(self) -> None:
        """Let go of what was started."""
        ...
