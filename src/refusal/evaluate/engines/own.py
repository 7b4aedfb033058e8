"""The model itself under hooks: in this package's batches, or in transformers' continuous batching."""

from collections.abc import Sequence

from refusal.evaluate.conditions import interventions_for
from refusal.generation import complete, complete_paged
from refusal.model import ChatModel
from refusal.records import Direction


class Own:
    """Batches of rows that are left-padded and leave when they end (``generation``)."""

    elsewhere = False
    write = staticmethod(complete)

    def serves(self, condition: str) -> bool:
        """Every condition."""
        return True

    def complete(
        self,
        model: ChatModel,
        direction: Direction,
        condition: str,
        instructions: Sequence[str],
        max_new_tokens: int,
        name: str,
    ) -> list[str]:
        """As ``Engine``."""
        with model.apply(*interventions_for(condition, direction)):
            return self.write(model, instructions, max_new_tokens, name)

    def close(self) -> None:
        """Nothing was started."""


class Paged(Own):
    """Continuous batching over a paged cache: a new prompt takes the place of one that has ended."""

    write = staticmethod(complete_paged)


OWN = Own()
