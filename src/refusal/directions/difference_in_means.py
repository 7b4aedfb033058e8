"""Difference in means: every (position, layer) gives one candidate direction."""

from refusal.directions.records import Activations, Candidates


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
    )
