"""What work on a model holds in memory: weights, activations of a pass, keys and values, logits."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from refusal.core import parallel
from refusal.core.work import Ask, Force, Score, Search, Work, Write
from refusal.model.batch_size import (
    FORCED_CHUNK,
    FORCED_TOKENS,
    MOST_SCORED,
    row_budget,
    rows_that_fit,
    tokens_that_fit,
)
from refusal.model.caches import cache_bytes_per_token
from refusal.model.chat_model import ChatModel
from refusal.model.fast_linear import copied_bytes
from refusal.model.sizes import ModelSize, activation_bytes, held_bytes, size_of

# bitsandbytes: half a byte or one for a number, and in 4 bits a float32 scale for every 64.
QUANTISED_BYTES = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes needed at the peak, by what they hold; the interpreter and its libraries come on
    top.
    """

    weights: int
    activations: int = 0
    cache: int = 0
    logits: int = 0

    @property
    def working(self) -> int:
        """All but the weights."""
        return self.activations + self.cache + self.logits

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.working


@dataclass(frozen=True)
class Room:
    """A model on a device, as far as its memory goes.

    Attributes:
        size: of the model, or of the part of it that is here.
        weights: bytes of what is here; ``itemsize``: bytes of an activation.
        tokens: most that a pass reads; ``rows``: most that are written side by side, by the tokens
            of one.
        keeps: what a search keeps lies in this memory too (on a processor).
    """

    size: ModelSize
    weights: int
    itemsize: int
    tokens: int
    rows: Callable[[int], int]
    keeps: bool = True


def weights_of(size: ModelSize, itemsize: int, quantize: str | None = None) -> int:
    """Bytes of one copy of the weights; quantised are those of linear layers alone."""
    quantised = size.linear if quantize is not None else 0
    each = QUANTISED_BYTES[quantize] if quantize is not None else 0.0
    return (size.weights - quantised) * itemsize + int(quantised * each)


def room_of(model: ChatModel) -> Room:
    """A loaded model's, with the batch sizes that were chosen for it."""
    size = size_of(model.hf, model.hf.config)

    def rows(length: int) -> int:
        fits = row_budget(model.device, length * cache_bytes_per_token(model))
        return min(model.batch_size.value, fits)

    return Room(
        size=replace(size, cache=size.cache // parallel.parts()),
        weights=sum(map(held_bytes, model.hf.parameters())) + copied_bytes(model.hf),
        itemsize=model.hf.dtype.itemsize,
        tokens=model.token_budget.value,
        rows=rows,
        keeps=model.device.type == "cpu",
    )


def room_on(
    size: ModelSize,
    kind: str,
    itemsize: int,
    weights: int,
    free: int | float,
    most: int | None = None,
) -> Room:
    """A model that is not loaded, on a device with ``free`` bytes beside its weights.

    Args:
        kind: ``cpu``, ``cuda`` or ``mps``.
        most: rows to write at once, where that is asked for.
    """

    def rows(length: int) -> int:
        fits = rows_that_fit(kind, free, length * size.cache * itemsize)
        return min(fits, most or fits)

    tokens = tokens_that_fit(kind, free, activation_bytes(size.d_model, size.inner, itemsize))
    return Room(size, weights, itemsize, tokens, rows, keeps=kind == "cpu")


def memory_of(work: Iterable[Work], room: Room) -> Memory | None:
    """The most that a stage's work holds at once; ``None`` where no model is run here."""
    needs = [_held(one, room) for one in work if not isinstance(one, Ask)]
    return max(needs, key=lambda need: need.total, default=None)


def _held(work: Work, room: Room) -> Memory:
    size, itemsize = room.size, room.itemsize
    vocabulary = size.head // size.d_model
    # A pass: copies of the stream and the widest MLP tensors of one block.
    each = activation_bytes(size.d_model, size.inner, itemsize)
    reading = Memory(room.weights, activations=room.tokens * each)
    match work:
        case Write(rows, new, length):
            # Keys and values count three times: growing, they are copied, and the allocator keeps
            # what was freed. Logits are those of one token a row, in float32 and twice more.
            tokens = 2 * math.ceil(length) + new  # what all begin with is about as long again
            together = min(math.ceil(rows), room.rows(tokens))
            cache = together * 3 * tokens * size.cache * itemsize
            return Memory(room.weights, cache=cache, logits=together * 3 * 4 * vocabulary)
        case Search(kept=kept, kept_prompts=prompts) if room.keeps:
            stream = int(kept) * size.layers * size.d_model * itemsize
            return replace(reading, cache=stream, logits=prompts * 8 * vocabulary)
        case Force(together=together):
            some = min(int(together), FORCED_TOKENS)
            logits = vocabulary * (some * 2 * itemsize + FORCED_CHUNK * 3 * 8)
            return Memory(room.weights, logits=logits)
        case Score():  # logits as they come and once in float32
            return replace(reading, logits=MOST_SCORED * vocabulary * (itemsize + 4))
    return reading
