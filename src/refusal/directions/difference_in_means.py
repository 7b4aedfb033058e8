"""Difference in means: every (position, layer) gives one candidate direction."""

from refusal.config.run_config import RunConfig
from refusal.core.records import PromptPair, RefusalTokens
from refusal.directions.method import DirectionMethod
from refusal.directions.pool import collect
from refusal.directions.records import Activations, Candidates
from refusal.model.chat_model import ChatModel


class DifferenceInMeans(DirectionMethod):
    """The paper's method."""

    def extract(
        self, model: ChatModel, train: PromptPair, tokens: RefusalTokens | None, config: RunConfig
    ) -> Candidates:
        """Mean activations of both classes, and their differences."""
        activations = collect(
            model,
            train,
            n=config.n_train,
            tokens=tokens,
            filtered=self.filters(config),
            layers=self.layers_read(config, model.sites.n_layers),
            seed=config.seed,
        )
        return difference_in_means(activations)


def difference_in_means(activations: Activations) -> Candidates:
    """``mean_harmful - mean_harmless`` per position and layer, float32 (paper section 2.3, equation
    2).
    """
    return Candidates(
        vectors=(activations.harmful - activations.harmless).float(),
        tokens=activations.tokens,
        model=activations.model,
        seed=activations.seed,
        seen=activations.seen,
        harmless_means=activations.harmless.float(),
        counts={"harmful": activations.harmful_count, "harmless": activations.harmless_count},
    )
