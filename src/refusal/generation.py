"""Batched greedy completions: sorted by length, rows that have ended leave the batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refusal.batches import batched
from refusal.forward import call, forward, new_cache, pack
from refusal.model import ChatModel
from refusal.progress import task


def complete(model: ChatModel, instructions: Sequence[str], max_new_tokens: int, name: str = "generate") -> list[str]:
    """Greedy completions of ``instructions``, in their order; special tokens are dropped from the text."""
    rows = model.tokenize(instructions)
    texts = [""] * len(rows)
    ends = end_tokens(model)
    with task(name, total=len(rows)) as advance:
        work = batched(
            [len(row) for row in rows],
            model.batch_size,
            lambda indices: _complete_batch(model, [rows[i] for i in indices], max_new_tokens, ends),
        )
        for indices, outputs in work:
            for i, output in zip(indices, outputs, strict=True):
                texts[i] = str(model.tokenizer.decode(output, skip_special_tokens=True))
            advance(len(indices))
    return texts


def end_tokens(model: ChatModel) -> list[int]:
    """Tokens that end a turn: what the generation config and the tokenizer say."""
    configured = model.hf.generation_config.eos_token_id if model.hf.generation_config is not None else None
    ends = set(configured if isinstance(configured, list) else [configured])
    ends.add(model.tokenizer.eos_token_id)
    return sorted(token for token in ends if token is not None)


def _complete_batch(
    model: ChatModel, rows: Sequence[Sequence[int]], max_new_tokens: int, ends: Sequence[int]
) -> list[list[int]]:
    """Token ids generated for each row, the ending token left out."""
    outputs: list[list[int]] = [[] for _ in rows]
    batch = pack(model, rows, side="left", new_tokens=max_new_tokens)
    cache = new_cache(model)
    logits = forward(model, batch, cache=cache)
    alive = list(range(len(rows)))
    mask, position = batch.mask, batch.positions[:, -1:]
    stop = torch.tensor(list(ends), dtype=torch.long, device=batch.ids.device)
    with torch.inference_mode():
        for step in range(max_new_tokens):
            token: Tensor = logits.argmax(-1).to(batch.ids.device)
            going = ~torch.isin(token, stop)
            for row, value, goes_on in zip(alive, token.tolist(), going.tolist(), strict=True):
                if goes_on:
                    outputs[row].append(value)
            if step == max_new_tokens - 1 or not going.any():
                break
            if not going.all():
                keep = going.nonzero()[:, 0]
                alive = [alive[i] for i in keep.tolist()]
                cache.batch_select_indices(keep)
                token, mask, position = token[keep], mask[keep], position[keep]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            position = position + 1
            model.forward_tokens += len(alive)
            logits = call(model, token[:, None], cache, True, mask, position)[:, -1]
    return outputs
