"""How strong an ablation is from layer to layer: a tent for attention, one for MLPs."""

from collections.abc import Sequence
from dataclasses import dataclass

from refusal.core.errors import ConfigError
from refusal.interventions.stream import Place

NUMBERS = (4, 8)  # that make a kernel: a tent for both parts, or one for each


@dataclass(frozen=True)
class Tent:
    """Strength over layers: ``most`` at one of them, falling in a straight line to ``least`` over a
    distance, and 0 farther away.

    Attributes:
        at: where it is highest, as a share of the depth: 0 is block 0, 1 the last.
        reach: the distance, as a share of the depth.
    """

    most: float
    at: float
    least: float
    reach: float

    def __post_init__(self) -> None:
        """Raise ConfigError unless place and reach are in a model."""
        if not (0 <= self.at <= 1 and 0 < self.reach <= 1):
            raise ConfigError(
                f"A tent of strengths has its top at a share of the depth from 0 to 1 and reaches "
                f"a share above 0, at most 1, not {self.at:g} and {self.reach:g}."
            )

    def height(self, layer: int, depth: int) -> float:
        """The strength at a block of a model of ``depth`` blocks."""
        last = max(1, depth - 1)
        distance = abs(layer - self.at * last) / (self.reach * last)
        if distance > 1 + 1e-9:  # a block that lies just there is within reach
            return 0.0
        return self.most + (self.least - self.most) * min(distance, 1.0)


@dataclass(frozen=True)
class Kernel:
    """A tent for what attention writes (or what stands in its place), one for what MLPs do."""

    attention: Tent
    mlp: Tent

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Kernel":
        """Most, at, least and reach of a tent for both, or of the two tents.

        Raises:
            ConfigError: neither four nor eight numbers, or such as make no tent.
        """
        if len(numbers) not in NUMBERS:
            raise ConfigError(
                f"A kernel is made of 4 numbers (most, at, least, reach) or of 8 (those of "
                f"attention, then those of MLPs), not of {len(numbers)}."
            )
        return cls(Tent(*numbers[:4]), Tent(*numbers[-4:]))

    def at(self, place: Place) -> float:
        """The strength at a place; 0 for what enters a block."""
        if place.layer is None or place.part is None:
            return 0.0
        tent = self.attention if place.part == "attention" else self.mlp
        return tent.height(place.layer, place.depth)
