"""What is found in a checkpoint's weights, as plain values; reading them needs no torch."""

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal[
    "edited by projection",
    "changed, not by projection",
    "unchanged",
    "no exact projection found",
    "not tested",
]
Frame = Literal["plain", "behind its norm", "rows of length one"]
Kept = Literal["column", "row"]


@dataclass(frozen=True)
class Identity:
    """How far a change of weights is ``-a u u'W`` of the base's weights ``W``.

    Attributes:
        strength: ``a = -<u'dW, u'W> / |u'W|^2``; 1 is a projection, 2 a reflection, below 0 the
            direction was strengthened.
        r2: squared cosine of the two rows ``u'dW`` and ``u'W``.
        random: median of ``|a|`` along random directions.
        share: share of ``|dW|^2`` along ``u``.
        holds: whether the rule flags it.
    """

    strength: float
    r2: float
    random: float
    share: float
    holds: bool


@dataclass(frozen=True)
class Part:
    """The writers of one component (attention, MLP, experts, ...) of one layer, along the layer's
    directions; ``along`` has an identity for each of them.
    """

    component: str
    writers: int
    changed: int
    along: tuple[Identity, ...]

    @property
    def holds(self) -> bool:
        """Whether the identity holds along any direction."""
        return any(one.holds for one in self.along)


@dataclass(frozen=True)
class Layer:
    """What was done to one layer's writers, found with the base.

    Attributes:
        layer: its number; ``None`` for what comes before the first block (embeddings).
        writers, changed: how many there are, and how many are not the base's.
        rank: of the change, to 99% of its size; ``None`` where it is above what is counted.
        frame: coordinates in which the identity was found.
        along: the identity of all writers together, one for each direction.
        parts: the identity of each component.
        kept: norms that the edit has kept beside projecting, of columns (what each input writes) or
            rows.
        cosines: of each direction with those pooled over the layers (with their span).
        lacking: the base has next to nothing along the changed direction, and the candidate has.
    """

    layer: int | None
    writers: int
    changed: int
    rank: int | None = None
    frame: Frame = "plain"
    along: tuple[Identity, ...] = ()
    parts: tuple[Part, ...] = ()
    kept: Kept | None = None
    cosines: tuple[float, ...] = ()
    lacking: bool = False

    @property
    def holds(self) -> bool:
        """Whether the layer is edited by projection."""
        return any(one.holds for one in self.along) or any(part.holds for part in self.parts)


@dataclass(frozen=True)
class Floor:
    """The rounding floor of some layers together, found without a base.

    Attributes:
        layers: their numbers; ``None`` stands for embeddings.
        ratio: what is left along the smallest eigenvector, in units of what rounding to the stored
            dtype leaves; about 1 to 100 after a projection, thousands and more without.
        gap: second smallest eigenvalue by the smallest.
        participation: effective number of coordinates of the eigenvector.
        found: whether this is an exact projection.
        tested: ``False`` where the weights went through few bits (the numbers are there, and
            nothing is concluded from them), or there are too few inputs.
        why: then, the reason.
    """

    layers: tuple[int | None, ...]
    ratio: float | None = None
    gap: float | None = None
    participation: float | None = None
    found: bool = False
    tested: bool = True
    why: str = ""


@dataclass(frozen=True)
class Proof:
    """A recovered direction tried on the base model.

    Attributes:
        layer: where it was scored best.
        amount: of the difference in means there along the direction, with its sign.
        cosine: of that difference with the direction.
        bypass, harmful: mean log-odds of refusal on harmful prompts under ablation, and without.
        induce, harmless: on harmless prompts under addition, and without.
        kl: of the next token on harmless prompts under ablation.
        qualified: whether the selection rule takes it for a refusal direction.
        prompts: of each class.
    """

    layer: int
    amount: float
    cosine: float
    bypass: float | None
    harmful: float | None
    induce: float | None
    harmless: float | None
    kl: float | None
    qualified: bool
    prompts: int


@dataclass(frozen=True)
class Forensics:
    """What is found in a checkpoint.

    Attributes:
        candidate, base: as they were named; no base: ``None``.
        verdict: of the whole checkpoint.
        recipe: what the edit resembles, in sentences.
        cannot: what this examination cannot say; always to be shown with the verdict.
        notes: what else was seen of the files (a head untied, a vocabulary resized).
        tensors, tensors_changed: of the whole checkpoint, with a base.
        layers: with a base, one a layer; ``floors``: without.
        directions: how many directions were recovered over all layers.
        agreement: mean absolute cosine of the layers' first directions with the pooled one.
        proofs: of each direction, where it was tried on the base.
        seconds: taken.
    """

    candidate: str
    base: str | None
    verdict: Verdict
    recipe: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tensors: int = 0
    tensors_changed: int = 0
    layers: tuple[Layer, ...] = ()
    floors: tuple[Floor, ...] = ()
    directions: int = 0
    agreement: float | None = None
    proofs: tuple[Proof, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def edited(self) -> tuple[Layer, ...]:
        """The layers that are edited by projection."""
        return tuple(layer for layer in self.layers if layer.holds)
