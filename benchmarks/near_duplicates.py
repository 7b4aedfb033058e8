"""Seconds of one core that removing near-duplicates takes, for kinds of prompts that are easy and
hard to tell apart.

    python benchmarks/near_duplicates.py --data-dir data --sizes 5000 10000 20000 50000

Alpaca's instructions are the easy kind: most of their words are rare. Prompts from one pattern
share all of their words but one or two, and prompts of words drawn from few share any of them.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from refusal.core.data_files import find_data_file
from refusal.core.records import Prompt
from refusal.prompts.similarity import drop_near_duplicates


def pattern(i: int, rng: random.Random) -> str:
    """Five words in common, five of one's own: just no near-duplicates."""
    own = " ".join(f"w{rng.randrange(20_000)}" for _ in range(5))
    return f"Please write a poem about {own}"


def short_pattern(i: int, rng: random.Random) -> str:
    """Four words in common, two of one's own."""
    return f"Tell me about the x{i} of y{rng.randrange(5000)}"[:60]


def few_words(i: int, rng: random.Random) -> str:
    """Eight of a hundred words: every word is frequent, hardly any two prompts are alike."""
    return " ".join(f"w{n}" for n in rng.sample(range(100), 8))


def long_few_words(i: int, rng: random.Random) -> str:
    """Forty of 300 words."""
    return " ".join(f"w{n}" for n in rng.sample(range(300), 40))


def zipf(i: int, rng: random.Random) -> str:
    """Words as frequent as in running text."""
    return " ".join(f"w{int(rng.paretovariate(0.6))}" for _ in range(12))


KINDS: dict[str, Callable[[int, random.Random], str]] = {
    "pattern": pattern,
    "short pattern": short_pattern,
    "few words": few_words,
    "long, few words": long_few_words,
    "as in text": zipf,
}


def alpaca(data_dir: Path) -> list[str]:
    """The instructions, and then each again with a tail that makes it another or the same
    prompt.
    """
    path = find_data_file(data_dir, "alpaca_instructions.json")
    assert path is not None, "alpaca_instructions.json is missing"
    texts = [row["instruction"] for row in json.loads(path.read_text(encoding="utf-8"))]
    random.Random(0).shuffle(texts)
    return texts + [
        f"{text} Answer for {i} readers in the town of t{i}." for i, text in enumerate(texts)
    ]


def seconds(texts: list[str]) -> tuple[float, int]:
    """Train against validation and test, then validation against test, as for a file without
    splits.
    """
    prompts = [Prompt(str(i), text, "harmless") for i, text in enumerate(texts)]
    first, second = int(0.6 * len(prompts)), int(0.8 * len(prompts))
    start = time.process_time()
    _, train = drop_near_duplicates(prompts[:first], prompts[first:])
    _, val = drop_near_duplicates(prompts[first:second], prompts[second:])
    return time.process_time() - start, train + val


def main() -> None:
    """Print one line a kind and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 10_000, 20_000, 50_000])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    for kind in options.kinds:
        for size in options.sizes:
            rng = random.Random(1)
            print(kind, size, *seconds([KINDS[kind](i, rng) for i in range(size)]), flush=True)
    if options.data_dir is not None:
        texts = alpaca(options.data_dir)
        for size in options.sizes:
            print("alpaca", size, *seconds(texts[:size]), flush=True)


if __name__ == "__main__":
    main()
