"""What follows many prompts that begin alike: one pass over each one's own tokens, the common ones
once a batch.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.progress import task
from refusal.model.batch_size import BatchSize, batched
from refusal.model.chat_model import ChatModel
from refusal.model.forward import plan, read
from refusal.model.generation import batching
from refusal.model.prefill import common_start, read_prompts

# a batch holds so many times the tokens of what its prompts share, if that is more than busies a
# device
SHARED_PART = 8


def next_logits(
    model: ChatModel, rows: Sequence[Sequence[int]], name: str
) -> list[Float[Tensor, "vocab"]]:
    """The logits that follow each row of token ids, on the CPU, in their order.

    Raises:
        OutOfMemoryError: one row alone does not fit.
    """
    if not rows:
        return []
    found: dict[int, Tensor] = {}
    how = batching(model)
    shared = common_start(rows) if how == "shared" else 0
    own = max(len(row) for row in rows) - shared
    size = BatchSize(
        1 if how == "alone" else max(1, max(model.token_budget.value, SHARED_PART * shared) // own)
    )

    def run(indices: list[int]) -> Float[Tensor, "row vocab"]:
        some = [rows[i] for i in indices]
        if how == "alone":
            (batch,) = (planned.lay_out() for planned in plan(model, some))
            return read(model, batch)[0].cpu()
        return read_prompts(model, some, 0, share=how == "shared").logits.cpu()

    with torch.inference_mode(), task(name, total=len(rows), unit="prompts") as advance:
        for indices, logits in batched([len(row) for row in rows], size, run):
            found.update(zip(indices, logits, strict=True))
            advance(len(indices))
    return [found[i] for i in range(len(rows))]
