"""Where a completion ends, and its text."""

from collections.abc import Sequence

from refusal.core.lengths import reading_lengths
from refusal.core.records import Written
from refusal.core.thinking import opens
from refusal.model.base import LoadedModel
from refusal.model.chat_template import tokenize
from refusal.model.thinking_limits import Limits
from refusal.model.thinking_tokens import readable


def read_outputs(
    model: LoadedModel, outputs: Sequence[Sequence[int]], freely: bool = False
) -> list[str]:
    """Generated tokens as text: thoughts stand in ``<think>…</think>``, special tokens are
    dropped, and an answer that was begun is given with its beginning. ``freely``: they follow
    prompts after which the model may think.
    """
    opened = thought_opened(model, freely)
    return [_text(model, output, opened) for output in outputs]


def read_at_lengths(model: LoadedModel, outputs: Sequence[Sequence[int]]) -> list[Written]:
    """Generated tokens as `read_outputs` gives them, and what stood there earlier on: the text of
    the first tokens themselves, which need not be a beginning of the whole.

    Where the model thinks freely, lengths are the answer's, and an unfinished thought has but one.
    """
    opened, found = thought_opened(model), []
    limit = Limits(model, 1) if model.chat.thinking.mode == "on" else None
    for ids in outputs:
        start = 0 if limit is None else limit.start(ids)
        if start is None:
            whole = _text(model, ids, opened)
            found.append(Written(whole, 0, {}))  # no answer yet
            continue
        texts, n = {}, len(ids) - start
        for length in reading_lengths(n):
            texts[length] = _text(model, ids[: start + length], opened)
        found.append(Written(texts.pop(n), n, texts))
    return found


def _text(model: LoadedModel, ids: Sequence[int], opened: bool) -> str:
    """Generated tokens as text, after the beginning that the answer was given.

    The two are decoded together: alone, a first token may lose the space that it begins with.
    """
    prefill, tokenizer = model.chat.around.prefill, model.tokenizer
    if not prefill:
        return readable(tokenizer, ids, opened)
    begun = tokenize(tokenizer, prefill)
    head, whole = readable(tokenizer, begun), readable(tokenizer, [*begun, *ids])
    fits = whole.startswith(head)
    return prefill + (whole[len(head) :] if fits else readable(tokenizer, ids, opened))


def thought_opened(model: LoadedModel, freely: bool = True) -> bool:
    """Whether the end of a prompt has opened a thought that the completion begins in; of a prompt
    that is completed ``freely``, or that ends with the closed thought.
    """
    if freely:
        return model.chat.opened
    return opens(str(model.tokenizer.decode(list(model.chat.suffix), skip_special_tokens=False)))


def end_tokens(model: LoadedModel) -> list[int]:
    """Tokens that end a turn: what the generation config and the tokenizer say."""
    configured = (
        model.hf.generation_config.eos_token_id if model.hf.generation_config is not None else None
    )
    ends = set(configured if isinstance(configured, list) else [configured])
    ends.add(model.tokenizer.eos_token_id)
    return sorted(token for token in ends if token is not None)
