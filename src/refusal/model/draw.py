"""Tokens drawn from softmax(logits / temperature) by the Gumbel-max trick, with numbers that depend
on the row's key, the step and the token alone.

``argmax(logits / T + G)`` with ``G = -log(-log U)``, one ``U`` a token, is a draw from the softmax
(Gumbel 1954; Maddison et al. 2014, A* sampling). The numbers are a hash, so no batch, order,
process or refill changes them; and where an intervention changes logits little, the same numbers
give the same token nearly as often as any two draws can.

The hash is 32 bits wide: multiply and shift with the constants 21f0aaad and 735a2d97 of Wellons'
search (github.com/skeeto/hash-prospector), a word of the key before and between the two products.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOW = 0xFFFFFFFF  # both factors are below 2^31, so that no product leaves 63 bits
AT_ONCE = {"cpu": 1 << 18}  # numbers that are made at once: a CPU's cache holds them
MOST = 1 << 23


@dataclass(frozen=True)
class Draw:
    """Draws for rows, each of which has its key."""

    temperature: float
    keys: Sequence[int] | Mapping[int, int]

    def tokens(
        self, logits: Float[Tensor, "row vocab"], rows: Sequence[int], steps: Sequence[int]
    ) -> list[int]:
        """The next token of each row, of which so many are written."""
        most = AT_ONCE.get(logits.device.type, MOST)
        some = max(1, most // logits.shape[-1])
        found: list[int] = []
        for first in range(0, len(rows), some):
            part = slice(first, first + some)
            found += self.perturbed(logits[part], rows[part], steps[part]).argmax(-1).tolist()
        return found

    def perturbed(
        self, logits: Float[Tensor, "row vocab"], rows: Sequence[int], steps: Sequence[int]
    ) -> Float[Tensor, "row vocab"]:
        """Scores in float32 whose largest is the token that is drawn."""
        words = [_words(self.keys[row], step) for row, step in zip(rows, steps, strict=True)]
        noise = gumbel(torch.tensor(words, device=logits.device), logits.shape[-1])
        scores = logits.float()
        return (scores - scores.amax(-1, keepdim=True)) / self.temperature + noise


def gumbel(words: Int[Tensor, "row 2"], vocabulary: int) -> Float[Tensor, "row vocab"]:
    """Standard Gumbel numbers, float32, for every row's two words of 32 bits and every token."""
    x = torch.arange(vocabulary, device=words.device) ^ words[:, :1]
    x ^= x >> 16
    x *= 0x21F0AAAD
    x &= LOW
    x ^= x >> 15
    x ^= words[:, 1:]
    x *= 0x735A2D97
    x &= LOW
    x ^= x >> 15
    uniform = (x.float() + 0.5) * 2.0**-32
    # 1 - U is as uniform as U, and its small values, which win, keep all their digits
    return -torch.log(-torch.log1p(-uniform))


def _words(key: int, step: int) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{key} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:])
