"""What an attack is: it looks at training and validation prompts within a budget, and gives arms.

An arm is a setting that is measured on test prompts. Most attacks have one; those that go through
strengths or ranks have one for each, and choose the best of them on validation prompts.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from refusal.config.audit import AuditConfig
from refusal.core import parallel
from refusal.core.direction import Direction
from refusal.core.records import PromptPair, RefusalTokens
from refusal.core.work import Work
from refusal.directions.records import Candidates, Selection
from refusal.evaluations.audit.norm_kept import NormKept
from refusal.evaluations.audit.records import Kind, Trial
from refusal.evaluations.audit.validation import Validation
from refusal.interventions.conditions import Condition
from refusal.model.chat_model import ChatModel
from refusal.model.edits import Intervention
from refusal.runs.stage import Plan


@dataclass(frozen=True)
class Setting:
    """What is done: a condition of a direction, or something that is said to the model.

    Attributes:
        keep_norms: ablation as an edit of weights that keeps the norms of their columns.
    """

    condition: str
    direction: Direction
    system: str | None = None
    prefill: str | None = None
    keep_norms: bool = False

    @property
    def talk(self) -> tuple[str | None, str | None]:
        """What is said to the model."""
        return self.system, self.prefill

    def edit(self, model: ChatModel) -> Intervention | None:
        """What is done to the stream; ``None`` where nothing is.

        Raises:
            UnsupportedModelError: the edit of weights cannot be had of this model.
        """
        if self.keep_norms:
            return NormKept.of(model, self.direction)
        return Condition.named(self.condition).edit(self.direction)


@dataclass
class Budget:
    """What a search may cost; it is asked between two steps of a search, and once it is spent it
    stays so.

    Attributes:
        tokens: through the model; ``seconds``: by the clock; ``None`` is no limit.
    """

    model: ChatModel
    tokens: float | None = None
    seconds: float | None = None
    begun: float = field(default_factory=time.perf_counter)
    read: int = -1

    def __post_init__(self) -> None:
        """Count from here on."""
        self.read = self.model.forward_tokens

    @property
    def spent(self) -> bool:
        """Whether nothing is left, as all processes of a run agree."""
        if self.tokens is not None:
            return parallel.total(self.model.forward_tokens - self.read) >= self.tokens
        if self.seconds is None:
            return False
        limit = self.begun + self.seconds
        return parallel.decided(lambda: time.perf_counter() >= limit)


@dataclass(frozen=True)
class Bench:
    """What an attack is given.

    Attributes:
        config: with the filter that the run has. train: pools that count. validation: scores on
            validation prompts.
        candidates, selection: of the textbook direction. budget: of this attack.
    """

    model: ChatModel
    config: AuditConfig
    train: PromptPair
    tokens: RefusalTokens
    candidates: Candidates
    selection: Selection
    validation: Validation
    budget: Budget

    @property
    def textbook(self) -> Direction:
        """The direction that the published method chooses."""
        return self.selection.direction

    @property
    def textbook_seen(self) -> Direction:
        """That direction for what the validation prompts have chosen further."""
        seen = self.textbook.seen | self.validation.seen
        return replace(self.textbook, seen=seen)

    @property
    def layers(self) -> int:
        """Layers ``0 .. value - 1`` may be chosen from."""
        return self.config.rule.eligible_layers(self.model.sites.n_layers)


@dataclass(frozen=True)
class Found:
    """What an attack proposes, before completions confirm it.

    Attributes:
        settings: by the arm's name, all that is to be completed on validation prompts.
        kept: names of those that are measured on test prompts whatever they do; of the others only
            the best is.
        trials: what the search looked at. note: what one must know of it.
    """

    settings: Mapping[str, Setting]
    kept: Sequence[str] = ()
    trials: Sequence[Trial] = ()
    note: str = ""


def filters(config: AuditConfig) -> bool:
    """Whether prompts are filtered by the refusal metric; where completions filter, they have done
    so before.
    """
    return config.filter in ("auto", "metric")


class Attack(ABC):
    """A way to get answers out of a model that refuses.

    Attributes:
        kind: whether the model is edited, or only what it is asked.
        searches: whether it takes a share of the budget.
    """

    kind: ClassVar[Kind] = "edit"
    searches: ClassVar[bool] = False

    @abstractmethod
    def find(self, bench: Bench) -> Found:
        """Propose settings; nothing here may look at a test prompt.

        Raises:
            UsageError: it cannot be made of this model or direction; that ends the attack, not the
                audit.
        """

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """What the search reads and writes, beside the completions that confirm it."""
        return ()

    @classmethod
    def arms(cls, config: AuditConfig) -> int:
        """How many settings are completed on test prompts, at most, beside the textbook's."""
        return 1
