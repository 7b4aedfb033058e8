"""Where a completion ends, and its text."""

from collections.abc import Sequence

from refusal.core.lengths import reading_lengths
from refusal.core.records import Written
from refusal.core.thinking import opens
from refusal.model.base import LoadedModel
from refusal.model.thinking_tokens import readable


def read_outputs(model: LoadedModel, outputs: Sequence[Sequence[int]]) -> list[str]:
    """Generated tokens as text: thoughts stand in ``<think>…</think>``, special tokens are
    dropped.
    """
    opened = thought_opened(model)
    return [readable(model.tokenizer, output, opened) for output in outputs]


def read_at_lengths(model: LoadedModel, outputs: Sequence[Sequence[int]]) -> list[Written]:
    """Generated tokens as `read_outputs` gives them, and what stood there earlier on: the text of
    the first tokens themselves, which need not be a beginning of the whole.
    """
    opened, found = thought_opened(model), []
    for ids in outputs:
        texts = {}
        for length in reading_lengths(len(ids)):
            texts[length] = readable(model.tokenizer, ids[:length], opened)
        found.append(Written(texts.pop(len(ids)), len(ids), texts))
    return found


def thought_opened(model: LoadedModel) -> bool:
    """Whether the template's own end of a prompt has opened a thought that the completion begins
    in.
    """
    return opens(str(model.tokenizer.decode(list(model.chat.suffix), skip_special_tokens=False)))


def end_tokens(model: LoadedModel) -> list[int]:
    """Tokens that end a turn: what the generation config and the tokenizer say."""
    configured = (
        model.hf.generation_config.eos_token_id if model.hf.generation_config is not None else None
    )
    ends = set(configured if isinstance(configured, list) else [configured])
    ends.add(model.tokenizer.eos_token_id)
    return sorted(token for token in ends if token is not None)
