"""The model itself under hooks: in this package's batches, or in transformers' continuous
batching.
"""

from pathlib import Path

from refusal.config.engines import EngineOptions
from refusal.engines.protocol import Job
from refusal.interventions.conditions import interventions_for
from refusal.model.generation import generate


class Hooks:
    """Batches of rows that are left-padded and leave when they end (``generation``)."""

    elsewhere = False
    write = staticmethod(generate)

    def __init__(self, options: EngineOptions | None = None, scratch: Path | None = None) -> None:
        """Nothing is needed beside the model."""

    @staticmethod
    def serves(condition: str) -> bool:
        """Every condition."""
        return True

    def generate(self, job: Job) -> list[str]:
        """Write greedy completions of a job's instructions, in their order."""
        with job.model.apply(*interventions_for(job.condition, job.direction)):
            return self.write(job.model, job.instructions, job.max_new_tokens, job.name)

    def close(self) -> None:
        """Nothing was started."""


HOOKS = Hooks()
