"""Another system prompt or beginning of the answer, for as long as a block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from refusal.core.errors import ConfigError
from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import find_format


@contextmanager
def talking(model: ChatModel, system: str | None, prefill: str | None) -> Iterator[None]:
    """Ask the model with another system prompt, or with its answer begun; ``None`` changes nothing.

    Raises:
        ConfigError: the model thinks freely before its answer, which so cannot be begun.
        ChatTemplateError: the template takes no system prompt.
    """
    chat = model.chat
    if prefill is not None and chat.thinking.mode == "on":
        raise ConfigError(
            f"The answer cannot begin with {prefill!r} where the model writes a thought before it. "
            "Use --thinking off or closed."
        )
    if system is not None or prefill is not None:
        around = replace(chat.around, prefill=chat.around.prefill if prefill is None else prefill)
        about = (chat.day, chat.thinking, around)
        said = chat.system if system is None else system
        model.chat = find_format(model.tokenizer, said, *about)
    try:
        yield
    finally:
        model.chat = chat
