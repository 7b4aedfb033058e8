"""The sizes that ``--minutes`` may make smaller: what is given up, in which order, and why.

The largest sizes are those of the configuration, the smallest are the last ones in this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trade:
    """Something to give up: sizes, one after the other, and why that costs little."""

    why: str
    steps: tuple[tuple[str, int], ...]


# What is asked first, refusal under baseline, ablation and addition with its intervals, goes last:
# never fewer than 16 test prompts a class, never completions of fewer than 24 tokens, never no
# controls where some are asked for.
TRADES = (
    Trade(
        "A refusal shows in a completion's first tokens; the rest is for readers and judges.",
        (
            ("n_items", 200),
            ("max_new_tokens", 448),
            ("max_new_tokens", 384),
            ("max_new_tokens", 320),
            ("max_new_tokens", 256),
            ("max_new_tokens", 192),
            ("max_new_tokens", 160),
            ("max_new_tokens", 128),
            ("max_new_tokens", 96),
            ("max_new_tokens", 80),
            ("max_new_tokens", 64),
        ),
    ),
    Trade(
        "Side effects are means over many tokens: half the texts, intervals 1.4 times as wide.",
        (
            ("n_items", 100),
            ("n_over_refusal", 64),
            ("n_texts", 48),
            ("n_texts", 32),
            ("text_tokens", 128),
        ),
    ),
    Trade(
        "Controls show that any direction does not do it: a few prompts of each are enough.",
        (("n_control", 24), ("n_control", 16), ("n_control", 12), ("n_control", 8)),
    ),
    Trade(
        "A mean over half the prompts points nearly the same way; a choice is good where the best "
        "candidates are alike.",
        (("n_train", 96), ("n_train", 64), ("n_val", 24)),
    ),
    Trade(
        "Directions of neighbouring layers are nearly the same.",
        (("layer_step", 2),),
    ),
    Trade(
        "Fewer random directions: what they do is seen, how far they spread only roughly.",
        (("controls", 6), ("controls", 4), ("n_control", 6)),
    ),
    Trade(
        "Drift is a mean over many tokens of few texts.",
        (("n_texts", 24), ("n_texts", 16), ("n_texts", 12), ("n_texts", 8)),
    ),
    Trade(
        "Refusals that begin after 32 tokens are missed: few do.",
        (("max_new_tokens", 48), ("max_new_tokens", 40), ("max_new_tokens", 32)),
    ),
    Trade(
        "Intervals grow with the root: 5 of 100 is 2-11 %, 2 of 32 is 2-20 %.",
        (
            ("n_items", 50),
            ("n_over_refusal", 32),
            ("n_test", 80),
            ("n_test", 64),
            ("n_test", 56),
            ("n_test", 48),
            ("n_val", 20),
            ("n_train", 48),
            ("n_val", 16),
            ("layer_step", 3),
            ("n_test", 40),
            ("n_test", 32),
        ),
    ),
    Trade(
        "What is beside the headline becomes a look.",
        (
            ("n_control", 4),
            ("controls", 3),
            ("n_texts", 6),
            ("text_tokens", 64),
            ("n_train", 32),
            ("controls", 2),
            ("n_texts", 4),
            ("n_val", 12),
            ("n_items", 20),
            ("n_over_refusal", 16),
            ("n_control", 3),
        ),
    ),
    Trade(
        "The choice becomes rough: fewer layers, fewer prompts.",
        (
            ("max_new_tokens", 28),
            ("n_train", 24),
            ("n_val", 10),
            ("max_new_tokens", 24),
            ("layer_step", 4),
        ),
    ),
    Trade("Drift is left out: the headline needs none.", (("drift_tokens", 0),)),
    Trade(
        "The headline itself, down to what still tells 90 % from 10 %.",
        (
            ("n_test", 28),
            ("n_test", 24),
            ("controls", 1),
            ("n_control", 2),
            ("n_train", 20),
            ("n_val", 8),
            ("n_test", 20),
            ("n_train", 16),
            ("n_test", 16),
        ),
    ),
)
STEPS = tuple(step for trade in TRADES for step in trade.steps)
SIZES = (
    *("n_train", "n_val", "layer_step", "n_test", "max_new_tokens", "controls", "n_control"),
    *("drift_tokens", "n_texts", "text_tokens", "n_over_refusal", "n_items"),
)
# A size that says nothing unless this option asks for what it is the size of.
ASKED_BY = {
    "n_items": "tasks",
    "n_over_refusal": "over_refusal",
    "n_control": "controls",
    "n_texts": "drift_tokens",
    "text_tokens": "texts",
}
FEWEST_LAYERS = 5  # that are scored: a shallow model's are not thinned out
COARSER = ("layer_step",)  # the larger, the less
