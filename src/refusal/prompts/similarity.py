"""Near-duplicates: prompts whose sets of words overlap by a Jaccard similarity of at least 0.6.

Exact, and fast enough for tens of thousands of prompts: two sets can only be that similar if they share one of their
few rarest words, so only those are looked up (prefix filtering, Chaudhuri et al. 2006).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from refusal.records import Prompt

THRESHOLD = 0.6
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def words(text: str) -> frozenset[str]:
    """The set of lower-cased words of a text; the text itself where it has none."""
    return frozenset(_WORD.findall(text.lower())) or frozenset([text])


def drop_near_duplicates(
    prompts: Sequence[Prompt], others: Sequence[Prompt], threshold: float = THRESHOLD
) -> tuple[tuple[Prompt, ...], int]:
    """``prompts`` without those as similar as ``threshold`` (> 0) to any of ``others``, and how many went."""
    sets, other_sets = [words(p.text) for p in prompts], [words(p.text) for p in others]
    frequency = Counter(word for group in (*sets, *other_sets) for word in group)

    def rarest(group: frozenset[str]) -> list[str]:
        """All but so few words that a similar set cannot consist of the rest."""
        size = len(group)
        # The smallest overlap that can reach the threshold, by the same division as below: the product
        # ``threshold * size`` can round above a whole number (0.55 * 20) and would drop pairs exactly at it.
        overlap = next((n for n in range(1, size + 1) if n / size >= threshold), size + 1)
        return sorted(group, key=lambda word: (frequency[word], word))[: size - overlap + 1]

    index: dict[str, list[frozenset[str]]] = defaultdict(list)
    for group in other_sets:
        for word in rarest(group):
            index[word].append(group)

    def has_near(group: frozenset[str]) -> bool:
        for word in rarest(group):
            for other in index.get(word, ()):  # millions of pairs: no function call for each
                shared = len(group & other)
                if shared / (len(group) + len(other) - shared) >= threshold:
                    return True
        return False

    kept = tuple(prompt for prompt, group in zip(prompts, sets, strict=True) if not has_near(group))
    return kept, len(prompts) - len(kept)


def drop_exact_duplicates(prompts: Sequence[Prompt], others: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], int]:
    """``prompts`` without those whose text occurs in ``others``, as the published splits do."""
    texts = {p.text for p in others}
    kept = tuple(p for p in prompts if p.text not in texts)
    return kept, len(prompts) - len(kept)
