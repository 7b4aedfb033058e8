"""What a stage is: a class in the file of what it measures, and a line in ``pipeline.stages``.

A run makes every stage first, so that a wrong name or a missing package stops it before anything
slow; then each does its work in turn. How long that takes and what it holds in memory is the sum
of what the stages say of themselves, in ``refusal estimate`` as in the run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from refusal.config.run_config import RunConfig
from refusal.core.direction import Direction
from refusal.core.filters import FilterChoice
from refusal.core.records import Metric, Prompt, PromptPair, PromptSplits, RefusalTokens
from refusal.core.storage import file_sha256
from refusal.core.work import Lengths, Work
from refusal.directions.records import Candidates, Selection
from refusal.model.chat_model import ChatModel
from refusal.runs.folder import RunFolder, Step

Pools = Mapping[str, tuple[Prompt, ...]]


@dataclass(frozen=True)
class Asked:
    """What a run is asked for.

    Attributes:
        config: all its options.
        prompts: training, validation and test pools of both classes.
        measured: prompts that are completed, by set: ``harmful``, ``harmless``, over-refusal sets.
        folder: where the run lives.
    """

    config: RunConfig
    prompts: PromptSplits
    measured: Pools
    folder: Path


@dataclass(frozen=True)
class Plan:
    """What is known of a run before its model is loaded.

    Attributes:
        config: all its options; ``layers``: of the model; ``lengths``: of prompts in tokens.
    """

    config: RunConfig
    layers: int
    lengths: Lengths = field(default_factory=Lengths)


@dataclass(frozen=True)
class Finding:
    """What a direction is found with, once it is known which filter there is.

    Attributes:
        config: the run's, with the filter that it has and induce's threshold as it is applied.
        train: the training pool; those that have passed, where completions decide.
        val: the validation pool; those that have passed, where completions decide.
        rule: whose score chooses where the method leaves that to the paper's: ``metric`` or
            ``cosmic``.
        drawn: how many prompts were looked at for a pool, by ``train.harmful`` and so on, where
            the pools hold only those that passed.
        seen: fingerprints of these.
    """

    config: RunConfig
    train: PromptPair
    val: PromptPair
    rule: str = "metric"
    drawn: Mapping[str, int] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()


@dataclass
class Run:
    """A run under way: what it was asked for, its folder and model, and what stages leave for
    later ones.
    """

    asked: Asked
    folder: RunFolder
    model: ChatModel
    plan: Plan
    tokens: RefusalTokens | None = None
    filter: FilterChoice | None = None
    found_with: Finding | None = None
    candidates: Candidates | None = None
    selection: Selection | None = None
    controls: dict[str, Direction] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        """All options of the run."""
        return self.asked.config

    @property
    def token_ids(self) -> tuple[int, ...] | None:
        """Ids of the refusal tokens, where there are some; after the stage that finds them."""
        return None if self.tokens is None else self.tokens.ids

    @property
    def finding(self) -> Finding:
        """What the direction is found with; only after the filter."""
        assert self.found_with is not None
        return self.found_with

    @property
    def chosen(self) -> Selection:
        """The chosen candidate with all scores; only after the selection."""
        assert self.selection is not None
        return self.selection

    @property
    def direction(self) -> Direction:
        """The direction; only after the selection."""
        return self.chosen.direction

    @cached_property
    def direction_hash(self) -> str:
        """Sha256 of the direction's file; only after the selection."""
        return file_sha256(self.folder.path / "direction.safetensors")


class Stage(ABC):
    """One thing that a run does.

    Attributes:
        name: of its records in the manifest (their first word), and of its line in an estimate.
        version: part of what its results are kept under. Raise it when the same inputs give other
            results than before.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def __init__(self, asked: Asked) -> None:
        """Look for what will be needed, before anything slow.

        Raises:
            UsageError: a wrong name, a package, file or key that is missing.
        """
        self.asked = asked

    @classmethod
    @abstractmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Count what the stage reads and writes; nothing where the configuration leaves it out.

        Raises:
            ConfigError: it cannot be counted without what is missing here.
        """

    def check(self, model: ChatModel) -> None:
        """Look at the loaded model: will all that is asked for fit it?

        Raises:
            UsageError: it will not.
        """

    def do(
        self,
        run: Run,
        about: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[Path],
        work: Callable[[], None],
        costs: Sequence[Work] = (),
    ) -> None:
        """Do a step of this stage, unless it is done; ``about`` tells its steps apart."""
        run.folder.do(self.step(about, inputs, outputs, costs), work)

    def step(
        self,
        about: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[Path],
        costs: Sequence[Work] = (),
    ) -> Step:
        """A step of this stage, to be done with others in ``run.folder.do_together``."""
        return Step(f"{self.name} {about}".strip(), str(self.version), inputs, outputs, costs)

    @abstractmethod
    def work(self, run: Run) -> Iterable[Metric]:
        """Do what is not done yet, leave it in ``run`` and the folder, and say what was measured.

        Raises:
            refusal.Error: what can go wrong.
        """
