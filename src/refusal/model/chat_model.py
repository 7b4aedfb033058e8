"""The object that the rest of the package works on."""

from collections.abc import Sequence

from refusal.model.base import LoadedModel
from refusal.model.generation import generate


class ChatModel(LoadedModel):
    """A causal language model with its chat format and its residual-stream sites.

    Attributes:
        hf: the transformers model, in eval mode.
        tokenizer: its tokenizer.
        name: what it was loaded from.
        revision: which of its versions, for a hub model; whoever loads one sets it.
        chat: the chat format: prefix and post-instruction tokens.
        sites: blocks and writers, verified.
        token_budget: tokens per pass when reading; chosen from free memory, halved when memory runs
            out.
        batch_size: most rows at once when generating, chosen and halved in the same way.
        packs: whether prompts may share a row of tokens; measured at first use.
        pads: whether rows may be padded when reading; measured at first use.
        batching: how rows are put together when generating; measured at first use
            (``generation.batching``).
        arguments: names of the arguments that the model's ``forward`` takes.
        forward_tokens: tokens run through the model so far, padding included.
    """

    def generate(self, instructions: Sequence[str], max_new_tokens: int = 128) -> list[str]:
        """Greedy completions, one per instruction, without the end-of-turn token."""
        return generate(self, instructions, max_new_tokens)
