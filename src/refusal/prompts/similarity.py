"""Near-duplicates: prompts whose sets of words overlap by a Jaccard similarity of at least 0.6.

Exact, and fast enough for a hundred thousand prompts, whatever they have in common: two sets can
only be that similar if they share one of their few rarest words (prefix filtering, Chaudhuri et al.
2006), at places after which enough words are left (positional filtering, Xiao et al. 2008), and if
not too many bits of their signatures differ (bitmap filtering, Sandes et al. 2020). Only what
passes all three is compared.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from refusal.core.progress import task
from refusal.core.records import Prompt

THRESHOLD = 0.6
BITS = 192  # of a signature, at the least
FEW = 64  # sets that are compared one by one in any case
STEP = 500  # prompts between two reports of progress
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")

Words = frozenset[str]


def words(text: str) -> Words:
    """The set of lower-cased words of a text; the text itself where it has none."""
    return frozenset(_WORD.findall(text.lower())) or frozenset([text])


def drop_near_duplicates(
    prompts: Sequence[Prompt], others: Sequence[Prompt], threshold: float = THRESHOLD
) -> tuple[tuple[Prompt, ...], int]:
    """``prompts`` without those as similar as ``threshold`` (> 0) to any of ``others``, and how
    many went.
    """
    sets, other_sets = [words(p.text) for p in prompts], [words(p.text) for p in others]
    index = _Index(
        other_sets, Counter(word for group in (*sets, *other_sets) for word in group), threshold
    )
    kept = []
    with task("near-duplicates", len(prompts)) as advance:
        for number, (prompt, group) in enumerate(zip(prompts, sets, strict=True), start=1):
            if not index.has_near(group):
                kept.append(prompt)
            if number % STEP == 0:
                advance(STEP)
        advance(len(prompts) % STEP)
    return tuple(kept), len(prompts) - len(kept)


class _Index:
    """Sets of words, and which of them another set may be near to."""

    def __init__(self, groups: Sequence[Words], frequency: Counter[str], threshold: float) -> None:
        self._threshold = threshold
        # Rarest first; equally frequent ones in a fixed order, so that all sets agree on it.
        self._rank = {
            w: n for n, w in enumerate(sorted(frequency, key=lambda word: (frequency[word], word)))
        }
        self._least_shared = lru_cache(maxsize=None)(self._count_least_shared)
        self._sets = sorted(dict.fromkeys(groups), key=len)
        self._sizes = np.array([len(group) for group in self._sets], dtype=np.intp)
        # Signatures tell sets apart that have no more than half as many words as there are bits:
        # nearly all of them.
        usual = float(np.quantile(self._sizes, 0.95)) if self._sets else 0.0
        self._bits = max(BITS, 64 * math.ceil(usual / 32))
        signatures = b"".join(map(self._signature, self._sets))
        self._signatures = (
            np.frombuffer(signatures, np.uint64).reshape(-1, self._bits // 64).T.copy()
        )
        self._by_word: dict[str, dict[tuple[int, int], list[Words]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for group in self._sets:
            for place, word in enumerate(self._rarest(group)):
                self._by_word[word][len(group), place].append(group)

    def has_near(self, group: Words) -> bool:
        """Whether a set of the index is as similar to ``group`` as the threshold."""
        size, left = len(group), FEW + len(self._sets) // 128
        for place, word in enumerate(self._rarest(group)):
            for (other_size, other_place), others in self._by_word.get(word, {}).items():
                # Of two near sets this is so at the rarest word that they share.
                may = min(size - place, other_size - other_place) >= self._least_shared(
                    size, other_size
                )
                left -= 1 + may * len(others)
                if left < 0:  # about as much work as looking at all signatures
                    return self._compare(group, self._alike(group))
                if may and self._compare(group, others):
                    return True
        return False

    def _compare(self, group: Words, others: Iterable[Words]) -> bool:
        size, threshold = len(group), self._threshold
        for other in others:  # millions of pairs: no function call for each
            shared = len(group & other)
            if shared / (size + len(other) - shared) >= threshold:
                return True
        return False

    def _alike(self, group: Words) -> Iterator[Words]:
        """All sets whose signature differs in no more bits than the words of a near set."""
        size = len(group)
        fits = slice(
            *np.searchsorted(self._sizes, [size * self._threshold - 1, size / self._threshold + 1])
        )
        sizes = self._sizes[fits]
        if not len(sizes):
            return
        differ = np.zeros(len(sizes), dtype=np.uint16)
        bits = np.frombuffer(self._signature(group), np.uint64)
        for column, own in zip(self._signatures, bits, strict=True):
            differ += np.bitwise_count(column[fits] ^ own)
        every = range(sizes[0], sizes[-1] + 1)
        most = [size + other - 2 * self._least_shared(size, other) for other in every]
        for i in np.flatnonzero(differ <= np.array(most)[sizes - sizes[0]]):
            yield self._sets[fits.start + i]

    def _rarest(self, group: Words) -> list[str]:
        """All but so few words that a similar set cannot consist of the rest."""
        size = len(group)
        least = next((n for n in range(1, size + 1) if n / size >= self._threshold), size + 1)
        return sorted(group, key=self._rank.__getitem__)[: size - least + 1]

    def _count_least_shared(self, size: int, other: int) -> int:
        """The least that sets of two sizes share if they are near.

        By the same division as where they are compared: a product like ``0.55 * 20`` can round
        above a whole number, and would lose pairs exactly at the threshold.
        """
        start = int(self._threshold / (1 + self._threshold) * (size + other)) - 1
        n = max(1, start)
        while n < size + other and n / (size + other - n) < self._threshold:
            n += 1
        return n

    def _signature(self, group: Words) -> bytes:
        """Bits, each the parity of the words that fall to it: no more of them differ than words
        do.
        """
        bits = 0
        for word in group:
            bits ^= 1 << (self._rank[word] % self._bits)
        return bits.to_bytes(self._bits // 8, "little")


def drop_exact_duplicates(
    prompts: Sequence[Prompt], others: Sequence[Prompt]
) -> tuple[tuple[Prompt, ...], int]:
    """``prompts`` without those that occur in ``others``, whatever their case and spacing, and how
    many went.
    """
    known = {p.fingerprint for p in others}
    kept = tuple(p for p in prompts if p.fingerprint not in known)
    return kept, len(prompts) - len(kept)


def drop_identical_texts(
    prompts: Sequence[Prompt], others: Sequence[Prompt]
) -> tuple[tuple[Prompt, ...], int]:
    """``prompts`` without those whose text occurs in ``others``, as the published splits do."""
    texts = {p.text for p in others}
    kept = tuple(p for p in prompts if p.text not in texts)
    return kept, len(prompts) - len(kept)
