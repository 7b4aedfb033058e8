"""Many prompts, flat memory: one call reads 2,000 prompts, one completes 1,000; what the process
holds on the way.

    python benchmarks/soak.py --prompts 2000 --completions 1000

A small random model (its results are noise; what it costs is not). Memory that grows with the
number of prompts would show as a slope; the fit over the second half of each call is printed, in
bytes a prompt. Completions are what is asked for and are kept: a few hundred bytes each.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from machine import get_model

import refusal
from refusal import Prompt, PromptPair, RefusalTokens
from refusal.core.progress import Advance, listening

SHOWN = 10


def main() -> None:
    """Both soaks, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=2000, help="of both classes together")
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()
    model = get_model("", "tiny", "float32", "auto")
    pair = prompts(max(options.prompts // 2, options.completions))
    half = slice(options.prompts // 2)
    read = PromptPair(pair.harmful[half], pair.harmless[half])
    asked = [prompt.text for prompt in pair.harmful[: options.completions]]
    tokens = RefusalTokens((65,), ("A",), "given")

    soak(
        "collected",
        len(read.harmful + read.harmless),
        lambda: refusal.collect(model, read, tokens=tokens, filtered=False),
    )
    soak("completed", len(asked), lambda: model.generate(asked, options.new_tokens))


def soak(name: str, n: int, work: Callable[[], object]) -> None:
    """Do it, and note what the process holds each time it says that it got on."""
    seen: list[tuple[int, int]] = []  # steps done (prompts, or tokens of completions), bytes held

    @contextmanager
    def listener(stage: str, total: int, unit: str) -> Iterator[Advance]:
        def advance(steps: int) -> None:
            seen.append(((seen[-1][0] if seen else 0) + steps, psutil.Process().memory_info().rss))

        yield advance

    with listening(listener):
        work()
    steps, held = torch.tensor(seen, dtype=torch.float64).T
    done = steps * n / steps[-1]
    for i in range(SHOWN):
        tenth = held[(done > n * i / SHOWN) & (done <= n * (i + 1) / SHOWN)] / 2**20
        if len(tenth):
            print(
                f"{n * (i + 1) // SHOWN:6} {name}: {tenth.median():,.0f} MiB, at most "
                f"{tenth.max():,.0f}"
            )
    later = done > n / 2
    x, y = done[later] - done[later].mean(), held[later] - held[later].mean()
    print(f"second half: {float((x * y).sum() / (x * x).sum()):+,.0f} bytes a prompt\n")


def prompts(n: int) -> PromptPair:
    """Different prompts of 5 to 40 words."""
    words = [
        "river",
        "stone",
        "light",
        "music",
        "market",
        "winter",
        "garden",
        "letter",
        "engine",
        "colour",
    ]

    def text(label: str, i: int) -> str:
        return (
            " ".join(words[(i * 7 + k * k) % len(words)] for k in range(5 + i % 36))
            + f" {label} {i}"
        )

    made = {label: tuple(Prompt(f"{label}-{i}", text(label, i), label) for i in range(n))
            for label in ("harmful", "harmless")}  # fmt: skip
    return PromptPair(made["harmful"], made["harmless"])


if __name__ == "__main__":
    main()
