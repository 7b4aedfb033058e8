"""A causal language model with its chat format and its sites: what passes and completions are built
on.
"""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from refusal.core import parallel
from refusal.core.day import Day
from refusal.core.turns import Question
from refusal.model.batch_size import BUSY_ROWS, BatchSize, token_budget
from refusal.model.chat_template import (
    PROBES,
    ChatFormat,
    find_format,
    render,
    tokenize,
)
from refusal.model.contexts import check_ids, vocabulary
from refusal.model.edits import Intervention, all_edits, by_prompt
from refusal.model.hooks import Edit, hooked, narrowed
from refusal.model.last_block import find_by_itself
from refusal.model.placement import input_device, whole_weights
from refusal.model.sites import Sites, find_sites
from refusal.model.sizes import activation_bytes, widest

Batching = Literal["shared", "padded", "alone"]


class LoadedModel:
    """All of ``ChatModel``, which names the attributes, but that it writes: passes and completions
    are functions of this.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "",
        *,
        chat: ChatFormat,
        sites: Sites | None = None,
        batch_size: int | None = None,
    ) -> None:
        hf.eval()
        self.hf = hf
        self.tokenizer = tokenizer
        self.name = name or str(hf.name_or_path)
        self.revision: str | None = None
        self.chat = chat
        self.sites: Sites = sites if sites is not None else find_sites(hf)
        lanes = self.sites.lanes.count if self.sites.lanes is not None else 1
        each = activation_bytes(lanes * self.sites.d_model, widest(hf.config), hf.dtype.itemsize)
        self.token_budget = BatchSize(parallel.smallest(token_budget(self.device, each)), "tokens")
        self.batch_size = BatchSize(batch_size or BUSY_ROWS.get(self.device.type, BUSY_ROWS["cpu"]))
        self.packs: bool | None = None
        self.pads: bool | None = None
        self.by_itself = find_by_itself(hf, self.sites.blocks[-1])
        self.batching: Batching | None = None
        self.arguments = frozenset(inspect.signature(hf.forward).parameters)
        self.forward_tokens = 0
        self.watched = 0
        self.apart = 0
        check_ids(tokenizer, self.tokenize(PROBES), vocabulary(hf), self.name)

    def __repr__(self) -> str:
        return f"ChatModel({self.name!r}, {self.hf.dtype}, {self.device}, {self.sites})"

    @property
    def device(self) -> torch.device:
        """The device of the embedding, where token ids go."""
        return input_device(self.hf)

    def tokenize(
        self, questions: Sequence[Question], freely: bool = False, prefill: bool = True
    ) -> list[list[int]]:
        """Token ids of whole prompts: each question as the user's turn or the turns of a
        conversation, after the turns that stand before every one; generation prompt included.

        Args:
            freely: for completions that may think, where the model does: without the closed thought
                that ends other prompts.
            prefill: with the answer's beginning, where the model is given one.
        """
        chat = self.chat
        around = chat.around if prefill else replace(chat.around, prefill="")
        thinking = chat.thinking.freely if freely else chat.thinking
        about = (chat.system, chat.day, thinking, around)
        return [tokenize(self.tokenizer, render(self.tokenizer, q, *about)) for q in questions]

    def set_day(self, day: Day) -> None:
        """Have the template write another date into prompts from now on."""
        chat = self.chat
        if day != chat.day:
            about = (chat.thinking, chat.around)
            self.chat = find_format(self.tokenizer, chat.system, day, *about)

    @contextmanager
    def apply(self, *interventions: Intervention) -> Iterator[Self]:
        """Run the model under ``interventions`` inside the block; nests, and nothing stays
        behind.
        """
        n = by_prompt(interventions)
        with hooked(all_edits(interventions, self.hf, self.sites)):
            self.watched, self.apart = self.watched + n, self.apart + n
            try:
                yield self
            finally:
                self.watched, self.apart = self.watched - n, self.apart - n

    @contextmanager
    def only_at(self, row: Int[Tensor, " kept"], column: Int[Tensor, " kept"]) -> Iterator[None]:
        """Have the head see the tokens ``column`` of rows ``row`` alone, each as a row of its own,
        inside the block, and compute for no others what only the head reads (`last_block.py`).
        """

        def kept(x: Float[Tensor, "row token d_model"]) -> Float[Tensor, "kept 1 d_model"]:
            return x[row.to(x.device), column.to(x.device)][:, None]

        head = Edit(self.hf.get_submodule(self.sites.head), "input", kept)
        with ExitStack() as stack:
            for name in self.by_itself:
                stack.enter_context(narrowed(self.hf.get_submodule(name), row, column))
            stack.enter_context(hooked([head]))
            yield

    def weight_hash(self, samples: int = 4096) -> str:
        """Sha256 over every tensor's name, shape, bit sum and up to ``samples`` evenly spaced
        values.

        The bit sum is exact, so the change of any one weight shows, and so does every edit short of
        one whose changes cancel bit for bit or swap values between the samples. Hashing every byte
        would take several times as long. It is the same wherever the weights lie, and however they
        are split; all processes of a split model must ask.
        """
        digest = hashlib.sha256()
        for name, tensor in whole_weights(self.hf):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            if tensor.is_meta:
                continue
            flat = tensor.detach().reshape(-1)
            values = flat[:: max(1, -(-flat.numel() // samples))].float().cpu()
            digest.update(values.numpy().tobytes())
            digest.update(str(_bit_sum(flat)).encode())
        return digest.hexdigest()


def _bit_sum(flat: Tensor) -> int:
    """Sum of a flat tensor's bytes, read as 64-bit integers that wrap around: the same in whatever
    order it is done.
    """
    data = flat.contiguous().view(torch.uint8)
    whole = data.numel() // 8 * 8
    words = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()
    return int(words.view(torch.int64).sum()) + int(data[whole:].sum(dtype=torch.int64))
