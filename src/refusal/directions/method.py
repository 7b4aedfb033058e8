"""A way to find the direction: a class in a file of its own, and a line in ``METHODS``."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from refusal.config.run_config import RunConfig
from refusal.core.records import PromptPair, RefusalTokens
from refusal.core.work import Lengths, Read, Search, Work
from refusal.directions.records import Candidates, Selection
from refusal.directions.selection.select import HowToSearch, select
from refusal.interventions.conditions import action_of
from refusal.model.chat_model import ChatModel

DRAWN = 1.4  # prompts read for each that passes the filter
POSITIONS = 5  # tokens after the instruction: that many candidates a layer
SCORED = 0.07  # of a triple loop's tokens: early exit, and induce starts in the middle
LOOKED = 12.0  # prompts for each candidate besides: what it takes to see that it fails
RISKED, RISK_LOOKED = 0.04, 5.0  # those two where tests may drop candidates
LOOKS = 3.0  # passes for each candidate


class DirectionMethod(ABC):
    """Candidates from training prompts, and one of them by validation prompts.

    The two steps are apart because a run keeps what each has found: candidates, then scores.

    Attributes:
        needs_tokens: the refusal tokens and the filter, which looks at them, are part of it.
            Without them both steps take the first prompts as they come, and tokens are only what
            the chosen candidate's three scores are reported with, where some are given or known.
    """

    needs_tokens: ClassVar[bool] = True

    @abstractmethod
    def extract(
        self, model: ChatModel, train: PromptPair, tokens: RefusalTokens | None, config: RunConfig
    ) -> Candidates:
        """One vector for every position and layer.

        Raises:
            TooFewPromptsError: too few prompts of a class count.
            NonFiniteError: an activation is NaN or infinite.
        """

    def settings(self, config: RunConfig) -> Mapping[str, object]:
        """Options that only this method looks at: its candidates are kept under them."""
        return {}

    def extract_costs(self, config: RunConfig, lengths: Lengths) -> Sequence[Work]:
        """The training prompts of both classes."""
        return (Read(2 * self.drawn(config) * config.n_train, lengths.train),)

    def select(
        self, model: ChatModel, candidates: Candidates, val: PromptPair, config: RunConfig
    ) -> Selection:
        """Choose by bypass, induce and KL, as the paper does.

        Raises:
            NoCandidateError: none qualifies under ``strict``, or none is even near.
            TooFewPromptsError: too few prompts of a class count.
            NonFiniteError: every candidate's scores are NaN.
        """
        return select(
            model,
            candidates,
            val,
            n=config.n_val,
            filtered=self.filters(config),
            rule=config.rule,
            how=HowToSearch(
                config.layer_step,
                config.full_map,
                config.resamples,
                config.strict,
                config.selection_risk,
            ),
        )

    def refine(
        self,
        model: ChatModel,
        candidates: Candidates,
        selection: Selection,
        pairs: tuple[PromptPair, PromptPair],
        config: RunConfig,
    ) -> Selection:
        """What is made of the choice with training and validation prompts at hand; by default it
        stays as it is.
        """
        return selection

    def select_costs(self, config: RunConfig, n_layers: int, lengths: Lengths) -> Sequence[Work]:
        """The validation prompts unmodified, and again under every candidate."""
        n, length = config.n_val, lengths.val
        candidates = self.candidates(config, n_layers)
        literal = 3.0 * candidates * n * length
        scored, looked = (RISKED, RISK_LOOKED) if config.selection_risk else (SCORED, LOOKED)
        tokens = scored * literal + looked * length * candidates
        if config.full_map:
            tokens = literal
        search = Search(tokens, LOOKS * candidates, n * length, n)
        return search, Read(2 * self.drawn(config) * n, length)

    def candidates(self, config: RunConfig, n_layers: int) -> int:
        """How many there are to choose from, about."""
        return POSITIONS * len(range(0, config.rule.eligible_layers(n_layers), config.layer_step))

    def drawn(self, config: RunConfig) -> float:
        """Prompts that are read for each that counts."""
        return DRAWN if self.filters(config) else 1.0

    def filters(self, config: RunConfig) -> bool:
        """Whether only prompts count whose refusal metric has the right sign. Where completions
        decide, prompts have been sorted out before.
        """
        return config.filter in ("auto", "metric") and self.needs_tokens

    def layers_read(self, config: RunConfig, n_layers: int) -> int | None:
        """How many layers' inputs are needed; ``None`` is all, which the filter comes with: it
        looks at the model's output, and interventions that need the direction of every layer.
        """
        every = any(action_of(name).by_layer for name in config.interventions)
        if self.filters(config) or config.full_map or every:
            return None
        return config.rule.eligible_layers(n_layers)
