"""Will prompts and texts fit into a model? Looked at before anything slow is done with them."""

from collections.abc import Sequence

from refusal.core.errors import ChatTemplateError
from refusal.core.records import Prompt
from refusal.model.chat_model import ChatModel
from refusal.model.contexts import check_rows, context_length, vocabulary

SLACK = 16  # tokens that a template may write around the text beside what all prompts share


def check_prompts(model: ChatModel, pool: Sequence[Prompt], new_tokens: int = 0) -> None:
    """Make sure that every prompt, and so many tokens after it, fits into the model.

    Raises:
        PromptError: one is too long.
        ChatTemplateError: the template rejects a conversation.
        ModelLoadError: one has a token that the model's embedding does not have.
    """
    foreign = max(model.tokenizer.get_vocab().values(), default=0) >= vocabulary(model.hf)
    some = list(pool) if foreign else _long(model, pool, new_tokens)
    rows = model.tokenize([prompt.question for prompt in some])
    check_rows(model, rows, new_tokens, [prompt.id for prompt in some])
    for prompt in {tuple(role for role, _ in p.before): p for p in reversed(pool)}.values():
        try:  # a template looks at roles: one conversation of each kind tells of all
            model.tokenize([prompt.question])
        except ChatTemplateError as error:
            raise ChatTemplateError(f"The prompt {prompt.id!r}: {error}") from error


def _long(model: ChatModel, pool: Sequence[Prompt], new_tokens: int) -> list[Prompt]:
    """Prompts that may be too long: a token is at least a byte of the text, and tokenising all of
    them takes long.
    """
    context = context_length(model.hf.config)
    if context is None:
        return []
    room = context - new_tokens - len(model.chat.prefix) - len(model.chat.suffix) - SLACK
    found = []
    for prompt in pool:
        said = "".join([*(f"{text}{' ' * SLACK}" for _, text in prompt.before), prompt.text])
        if len(said.encode("utf-8", "replace")) > room:
            found.append(prompt)
    return found
