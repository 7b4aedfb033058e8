"""Greedy completions by transformers' continuous batching over a paged cache, under the model's
hooks.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from refusal.core import parallel
from refusal.core.errors import EngineError
from refusal.core.progress import task
from refusal.core.turns import Question
from refusal.engines.hooks import Hooks
from refusal.model.base import LoadedModel
from refusal.model.batch_size import row_budget
from refusal.model.caches import cache_bytes_per_token
from refusal.model.endings import end_tokens, read_outputs
from refusal.model.generation import batching, generate

log = logging.getLogger(__name__)

PAGE = 64  # tokens whose keys and values are kept together


def generate_paged(
    model: LoadedModel,
    instructions: Sequence[Question],
    max_new_tokens: int,
    name: str = "generate",
) -> list[str]:
    """Write greedy completions by transformers' continuous batching: prompts take the place of rows
    that have ended.

    Keys and values are kept in pages, and the tokens of all running rows go through the model as
    one row. Interventions that are the same for every token act as ever. A model whose state has no
    pages is completed as ``generate`` does.

    Raises:
        EngineError: transformers gives a prompt up.
    """
    rows = model.tokenize(instructions)
    if model.chat.thinking.mode == "on":
        log.warning(
            "%s: a thought's own limit is not known to continuous batching, so completions are "
            "written in this package's batches.",
            model.name,
        )
        return generate(model, instructions, max_new_tokens, name)
    if batching(model) == "alone":
        log.warning(
            "%s: its state cannot be kept in pages, so it is completed in this package's batches.",
            model.name,
        )
        return generate(model, instructions, max_new_tokens, name)
    longest = max((len(row) for row in rows), default=0) + max_new_tokens
    fits = parallel.smallest(row_budget(model.device, longest * cache_bytes_per_token(model)))
    with task(name, total=len(rows), unit="completions") as advance:
        share = max(1, -(-len(rows) // parallel.world()))
        units = [rows[start : start + share] for start in range(0, len(rows), share)]
        outputs = parallel.share(
            units, lambda some: _generate_paged(model, some, max_new_tokens, fits, advance)
        )
    return read_outputs(model, [ids for part in outputs for ids in part])


def _generate_paged(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    most: int,
    advance: Callable[[int], object],
) -> list[list[int]]:
    """``most``: rows whose keys and values fit into memory at once."""
    longest = max(map(len, rows)) + max_new_tokens
    together = min(len(rows), most)
    ends = end_tokens(model)
    how = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    pages = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=together * (longest // PAGE + 2),
        max_batch_tokens=model.token_budget.value,
        use_cuda_graph=False,  # hooks may place a direction on the device while a graph is recorded
    )
    found: dict[str, list[int]] = {}
    paged: Any = model.hf.continuous_batching_context_manager
    with paged(how, continuous_batching_config=pages, warmup=False) as manager:
        order = manager.add_requests(
            inputs=[list(row) for row in rows], max_new_tokens=max_new_tokens
        )
        while len(found) < len(rows):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise EngineError(
                    "transformers' continuous batching ended early. Use --engine own."
                )
            if result is None or not result.is_finished():
                continue
            if result.error is not None:
                raise EngineError(
                    f"Continuous batching gave a prompt up ({result.error}). Use --engine own."
                )
            found[result.request_id] = [
                token for token in result.generated_tokens if token not in ends
            ]
            model.forward_tokens += len(result.prompt_ids) + len(result.generated_tokens)
            advance(1)
    return [found[ident] for ident in order]


class Paged(Hooks):
    """Continuous batching over a paged cache: a new prompt takes the place of one that has
    ended.
    """

    write = staticmethod(generate_paged)
