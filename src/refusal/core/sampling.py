"""How completions are drawn: greedily, or several of each prompt at a temperature, which a seed
alone decides.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from refusal.core.errors import ConfigError
from refusal.core.turns import Question, fingerprint, turns_of


@dataclass(frozen=True)
class Sampling:
    """How many completions of each prompt, at which temperature, from which seed.

    Attributes:
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
    """

    temperature: float = 0.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for a temperature below 0, or several completions without one."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(
                f"A temperature of {self.temperature} cannot be used. Give one of 0 or more."
            )
        if self.samples < 1:
            raise ConfigError(f"{self.samples} samples cannot be drawn. Give 1 or more.")
        if self.samples > 1 and self.greedy:
            raise ConfigError(
                f"--samples {self.samples} needs a --temperature above 0: greedy completions of a "
                "prompt are all the same."
            )

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """Of a prompt's samples; ``None`` of the greedy completion."""
        return (None,) if self.greedy else tuple(range(self.samples))

    @property
    def inputs(self) -> dict[str, Any]:
        """What drawn completions depend on; nothing for greedy ones."""
        return {} if self.greedy else {"sampling": [self.temperature, self.samples, self.seed]}

    def keys(self, questions: Sequence[Question]) -> tuple[int, ...]:
        """A number for each sample of each prompt, in that order, that its draws come from.

        It depends on the seed, the prompt's fingerprint and the sample's number alone: the same
        under every condition, and whatever else is drawn beside it.
        """
        found = []
        for question in questions:
            *before, (_, text) = turns_of(question)
            name = fingerprint(text, tuple(before))
            for sample in range(self.samples):
                about = f"{self.seed} {sample} {name}".encode()
                found.append(int.from_bytes(hashlib.blake2b(about, digest_size=8).digest()))
        return tuple(found)


GREEDY = Sampling()


def sample_key(prompt_id: str, sample: int | None) -> str:
    """What tells the samples of prompts apart: the prompt's id, with the sample's number."""
    return prompt_id if sample is None else f"{prompt_id}#{sample}"
