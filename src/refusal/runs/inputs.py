"""Will prompts and texts fit into a model? Looked at before anything slow is done with them."""

from collections.abc import Sequence

from refusal.core.records import Prompt
from refusal.model.chat_model import ChatModel
from refusal.model.contexts import check_rows, context_length, vocabulary

SLACK = 16  # tokens that a template may write around the text beside what all prompts share


def check_prompts(model: ChatModel, pool: Sequence[Prompt], new_tokens: int = 0) -> None:
    """Make sure that every prompt, and so many tokens after it, fits into the model.

    Raises:
        PromptError: one is too long.
        ModelLoadError: one has a token that the model's embedding does not have.
    """
    foreign = max(model.tokenizer.get_vocab().values(), default=0) >= vocabulary(model.hf)
    some = pool if foreign else _long(model, pool, new_tokens)
    check_rows(model, model.tokenize([p.text for p in some]), new_tokens, [p.id for p in some])


def _long(model: ChatModel, pool: Sequence[Prompt], new_tokens: int) -> list[Prompt]:
    """Prompts that may be too long: a token is at least a byte of the text, and tokenising all of
    them takes long.
    """
    context = context_length(model.hf.config)
    if context is None:
        return []
    room = context - new_tokens - len(model.chat.prefix) - len(model.chat.suffix) - SLACK
    return [prompt for prompt in pool if len(prompt.text.encode("utf-8", "replace")) > room]
