"""One of the models that are compared, and what stays of the base once it has left the memory.

``base/`` and ``candidates/NAME/`` are folders like a run's, with a manifest each: a step is reused
while its inputs are unchanged.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from refusal.core.direction import Direction
from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import ChatFormat
from refusal.model.contexts import vocabulary
from refusal.runs.stage import Run

KL, TEXTS, STREAM = "KL", "cross-entropy", "stream"
WEIGHTS = ("weight_hash", "dtype", "config_hash")  # of a model's identity


@dataclass(frozen=True)
class Kept:
    """What is known of the base without its weights.

    Attributes:
        folder: of its results. identity: as a manifest has it.
        tokenizer, chat: how it is asked. vocabulary: rows of its embedding.
        layers, width: of its stream.
        token_budget, batch_size: how much ran at once, so that rounding is alike.
    """

    folder: Path
    identity: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    vocabulary: int
    layers: int
    width: int
    token_budget: int
    batch_size: int


@dataclass
class Side(Run):
    """A model under way.

    Attributes:
        found: the base's direction; the prompts that found it are not tested on.
        base: of a candidate, what is kept of the base; ``None``: this is the base.
        missing: what cannot be compared (``KL``, ``TEXTS``, ``STREAM``), and why.
    """

    found: Direction | None = None
    base: Kept | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def about(self) -> Direction:
        """The base's direction."""
        assert self.found is not None
        return self.found


def keep(side: Side) -> Kept:
    """What is to be known of the base when the candidates are measured."""
    model = side.model
    return Kept(
        side.folder.path,
        side.folder.manifest["model"],
        model.tokenizer,
        model.chat,
        vocabulary(model.hf),
        model.sites.n_layers,
        model.sites.d_model,
        model.token_budget.value,
        model.batch_size.value,
    )


def compare_makes(base: Kept, model: ChatModel) -> dict[str, str]:
    """What cannot be compared of a candidate, and why.

    KL needs the same tokens and as many rows of them; cross-entropy along given texts the same
    tokens; what is in the stream the same tokens, width and number of blocks.
    """
    found: dict[str, str] = {}
    if not _one_holds_the_other(base.tokenizer.get_vocab(), model.tokenizer.get_vocab()):
        why = "its tokenizer has other tokens than the base's"
        return dict.fromkeys((KL, TEXTS, STREAM), why)
    if (rows := vocabulary(model.hf)) != base.vocabulary:
        found[KL] = f"its vocabulary has {rows} rows, the base's {base.vocabulary}"
        if rows < base.vocabulary and rows <= max(base.tokenizer.get_vocab().values()):
            return dict.fromkeys((KL, TEXTS, STREAM), found[KL])
    shape = (model.sites.n_layers, model.sites.d_model)
    if shape != (base.layers, base.width):
        found[STREAM] = (
            f"it has {shape[0]} blocks of width {shape[1]}, the base {base.layers} of {base.width}"
        )
    return found


def _one_holds_the_other(first: Mapping[str, int], second: Mapping[str, int]) -> bool:
    """Whether one vocabulary has all tokens of the other under their ids: a GGUF file names rows
    that are only there to fill up, a fine-tuned model may have new tokens.
    """
    small, large = sorted((first, second), key=len)
    return all(large.get(token) == index for token, index in small.items())


def notes_on(base: Kept, identity: Mapping[str, Any]) -> Iterator[str]:
    """What one must know of a candidate to read its numbers."""
    same = all(identity[key] == base.identity[key] for key in WEIGHTS)
    if same:
        yield "It has the base's weights, by their hash: whatever differs is how it is asked."
    if identity["dtype"] != base.identity["dtype"]:
        yield f"It computes in {identity['dtype']}, the base in {base.identity['dtype']}."
    if identity["rendered_hash"] != base.identity["rendered_hash"]:
        yield (
            "Its tokenizer or chat template makes other prompts than the base's: completions and "
            "benchmarks are of its own; KL, cross-entropy and the stream, where they are measured, "
            "of the base's prompts."
        )


@contextmanager
def asked_like(model: ChatModel, base: Kept | None) -> Iterator[None]:
    """Ask a model with the base's tokenizer and template inside the block; both have the same
    tokens.
    """
    own = model.tokenizer, model.chat
    if base is not None:
        model.tokenizer, model.chat = base.tokenizer, base.chat
    try:
        yield
    finally:
        model.tokenizer, model.chat = own
