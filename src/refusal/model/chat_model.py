"""The object that the rest of the package works on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Self, TypedDict, Unpack

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from refusal.core.day import Day
from refusal.core.errors import ConfigError
from refusal.core.turns import Question
from refusal.model.base import LoadedModel
from refusal.model.chat_template import ALONE, AS_WRITTEN, PROBES, find_format
from refusal.model.edits import Intervention, by_prompt
from refusal.model.forward import pads, uncounted
from refusal.model.generation import batching, generate, generate_rows
from refusal.model.harmless_turns import around_of
from refusal.model.sites import Sites
from refusal.model.thinking_form import find_thinking

FIRST_TOKENS = 32  # of a completion: enough for a mark of thinking in plain text
FIRST_PROMPTS = 3


class SiteOptions(TypedDict, total=False):
    """What ``ChatModel`` finds or measures itself where it is not given."""

    sites: Sites | None
    batch_size: int | None


class Talk(TypedDict, total=False):
    """What stands around prompts beside a system prompt: as many harmless ``turns`` before them,
    and ``prefill``, how the answer begins.
    """

    turns: int
    prefill: str | None


class ModelParts(SiteOptions, Talk, total=False):
    """All of both."""


class ChatModel(LoadedModel):
    """A causal language model with its chat format and its residual-stream sites.

    Attributes:
        hf: the transformers model, in eval mode.
        tokenizer: its tokenizer.
        name: what it was loaded from.
        revision: which of its versions, for a hub model; whoever loads one sets it.
        chat: the chat format: prefix and post-instruction tokens, and what is done about thoughts.
        sites: blocks and writers, verified.
        token_budget: tokens per pass when reading; chosen from free memory, halved when memory runs
            out.
        batch_size: most rows at once when generating, chosen and halved in the same way.
        packs: whether prompts may share a row of tokens; measured at first use.
        pads: whether rows may be padded when reading; measured at first use.
        by_itself: modules of the last block that need not see every token (`last_block.py`).
        batching: how rows are put together when generating; measured at first use
            (``generation.batching``).
        arguments: names of the arguments that the model's ``forward`` takes.
        forward_tokens: tokens run through the model so far, padding included.
        watched: how many want every prompt read whole, not its beginning once for several.
        apart: how many want one prompt a row; they decide by it.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "",
        *,
        system: str | None = None,
        day: Day | None = None,
        thinking: Literal["off", "closed", "on"] | None = None,
        thinking_tokens: int = AS_WRITTEN.tokens,
        **options: Unpack[ModelParts],
    ) -> None:
        """See `load` for the options.

        Raises:
            ConfigError: ``thinking`` cannot be had of this model, so many ``turns`` there are not,
                or ``prefill`` where it thinks freely.
        """
        wanted = (tokenizer, thinking, thinking_tokens, system, day)
        prefill = options.get("prefill")
        around = around_of(options.get("turns", 0), prefill)
        found = find_thinking(*wanted)
        chat = find_format(tokenizer, system, day, found, ALONE if found.unsure else around)
        sites, batch_size = options.get("sites"), options.get("batch_size")
        super().__init__(hf, tokenizer, name, chat=chat, sites=sites, batch_size=batch_size)
        if found.unsure:
            found = find_thinking(*wanted, self._beginnings)
            self.chat = find_format(tokenizer, system, self.chat.day, found, around)
        if prefill and found.mode == "on":
            raise ConfigError(
                f"--prefill {prefill!r}: with --thinking on the answer begins after a thought that "
                "the model writes itself. Use --thinking off or closed."
            )

    @contextmanager
    def apply(self, *interventions: Intervention) -> Iterator[Self]:
        """Run the model under ``interventions`` inside the block; nests, and nothing stays
        behind.
        """
        if by_prompt(interventions):  # measured without them
            batching(self), pads(self)
        with super().apply(*interventions):
            yield self

    def _beginnings(self) -> list[str]:
        """What the model begins to write, special tokens included."""
        with uncounted(self):
            rows = generate_rows(self, self.tokenize(PROBES[:FIRST_PROMPTS]), FIRST_TOKENS)
        return [str(self.tokenizer.decode(row, skip_special_tokens=False)) for row in rows]

    def generate(self, instructions: Sequence[Question], max_new_tokens: int = 128) -> list[str]:
        """Greedy completions, one per instruction or conversation, without the end-of-turn token; a
        thought stands in ``<think>…</think>``, and an answer that was begun is given whole.
        """
        return generate(self, instructions, max_new_tokens)
