"""The model itself under hooks: in this package's batches, or in transformers' continuous
batching.
"""

from refusal.engines.paged import complete_paged
from refusal.engines.protocol import Job
from refusal.interventions.conditions import interventions_for
from refusal.model.generation import complete


class Own:
    """Batches of rows that are left-padded and leave when they end (``generation``)."""

    elsewhere = False
    write = staticmethod(complete)

    def serves(self, condition: str) -> bool:
        """Every condition."""
        return True

    def complete(self, job: Job) -> list[str]:
        """As ``Engine``."""
        with job.model.apply(*interventions_for(job.condition, job.direction)):
            return self.write(job.model, job.instructions, job.max_new_tokens, job.name)

    def close(self) -> None:
        """Nothing was started."""


class Paged(Own):
    """Continuous batching over a paged cache: a new prompt takes the place of one that has
    ended.
    """

    write = staticmethod(complete_paged)


OWN = Own()
