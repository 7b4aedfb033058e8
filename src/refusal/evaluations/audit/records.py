"""What an audit writes about its attacks, read back without torch.

attacks/<attack>.json            what was tried on validation prompts, and what was chosen
attacks/<attack>.safetensors     the direction or subspace of all its arms
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refusal.core.strict_files import damaged, read_one

Kind = Literal["edit", "prompt", "control"]
BASELINE = "baseline"


@dataclass(frozen=True)
class Validated:
    """What something did to validation prompts.

    Attributes:
        bypass: mean log-odds of the refusal tokens on harmful prompts, without the epsilons of the
            refusal metric, so that it tells apart what that one calls certain.
        kl: mean KL divergence of the first token on harmless prompts, in nats.
        refused, degenerate: shares of completions of ``n`` harmful prompts, where they were judged.
    """

    bypass: float | None
    kl: float | None
    refused: float | None = None
    degenerate: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Arm:
    """One thing that is measured on test prompts, as it is kept.

    Attributes:
        name: of its files and rows. condition: the intervention, with its numbers; or the baseline.
        rank: the first so many rows of the attack's subspace are taken out.
        system, prefill: what is said to the model instead. keep_norms: as an edit of weights.
    """

    name: str
    condition: str
    rank: int
    validated: Validated
    system: str | None = None
    prefill: str | None = None
    keep_norms: bool = False


@dataclass(frozen=True)
class Trial:
    """One setting that a search looked at."""

    label: str
    validated: Validated


@dataclass(frozen=True)
class AttackRecord:
    """What an attack came to on validation prompts.

    Attributes:
        chosen: name of its best arm; ``None`` where it cannot be made of this model, as ``note``
            then says.
        within: whether the chosen arm's damage is within the limit.
        arms: all that is measured, the best among them.
    """

    name: str
    kind: Kind
    chosen: str | None
    within: bool
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...] = ()
    note: str = ""

    @property
    def best(self) -> Arm:
        """The chosen arm; only where there is one."""
        return next(arm for arm in self.arms if arm.name == self.chosen)


def read_attack(path: Path) -> AttackRecord:
    """What an attack came to.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """
    found: AttackRecord = read_one(path, AttackRecord)
    if found.chosen is not None and found.chosen not in [arm.name for arm in found.arms]:
        raise damaged(path, f"chosen: {found.chosen!r} is none of its arms")
    return found
