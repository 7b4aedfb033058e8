"""Is what was read of a pool of prompts finite, and are enough of them left?"""

import logging
import math
from collections import Counter
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from refusal.core.errors import NonFiniteError, TooFewPromptsError
from refusal.core.records import Prompt
from refusal.model.chat_model import ChatModel
from refusal.model.forward import last_logits
from refusal.model.probe import other_dtype

log = logging.getLogger(__name__)

MIN_PROMPTS = 8


def check_finite(
    model: ChatModel,
    activations: Float[Tensor, "prompt position layer d_model"] | None,
    metrics: Sequence[float],
) -> None:
    """Before the filter looks at a metric: NaN passes in neither class, and too few prompts would
    be blamed for it.
    """
    where = "logits"
    if (
        activations is not None
        and not (finite := activations.isfinite().all(-1).all(1).all(0)).all()
    ):
        where = f"activations at layer {int((~finite).nonzero()[0, 0])}"
    elif not any(math.isnan(metric) for metric in metrics):
        return
    raise NonFiniteError(f"The {where} are not finite. {other_dtype(model.hf.dtype)}")


def check_enough(
    model: ChatModel,
    label: str,
    passed: int,
    drawn: int,
    n: int | None,
    pool: Sequence[Prompt],
    filtered: bool,
) -> None:
    """Too few is an error that shows what the model really says; fewer than asked is a warning."""
    least = min(MIN_PROMPTS, n or MIN_PROMPTS) if filtered else 1
    if passed < least:
        if not filtered:
            raise TooFewPromptsError(f"There are no {label} prompts. Give some with --prompts.")
        raise TooFewPromptsError(
            f"Only {passed} of {drawn} {label} prompts pass the refusal filter, at least {least} "
            "are needed. The model's most likely first tokens there: "
            f"{first_tokens(model, pool[:16])}. Give matching --refusal-tokens, filter by judged "
            "completions (--filter completions), give more prompts, or switch the filter off with "
            "--no-filter."
        )
    if n is not None and passed < n:
        there = (
            f"{passed} of {drawn} {label} prompts pass the filter"
            if filtered
            else f"{passed} {label} prompts exist"
        )
        log.warning("Only %s (%d wanted): going on with those.", there, n)


def first_tokens(model: ChatModel, prompts: Sequence[Prompt]) -> str:
    """The commonest greedy first tokens, for an error message."""
    first = (
        last_logits(model, [prompt.question for prompt in prompts]).argmax(-1).tolist()
        if prompts
        else []
    )
    seen = Counter(str(model.tokenizer.decode([token])) for token in first)
    return (
        ", ".join(f"{text!r} ({count})" for text, count in seen.most_common(5))
        or "none (no prompts)"
    )
