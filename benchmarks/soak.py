"""Many prompts, flat memory: reads and completes prompts in rounds and prints what the process holds after each.

    python benchmarks/soak.py --prompts 2000 --completions 1000

A small random model (its results are noise; what it costs is not). Memory that grows with the number of prompts would
show as a slope over the rounds; the fit over the second half of them is printed, in bytes a prompt.
"""

import argparse
import gc

import psutil
import torch
from machine import get_model

import refusal
from refusal import Prompt, PromptPair, RefusalTokens

ROUNDS = 10


def main() -> None:
    """Both soaks, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()
    model = get_model("", "tiny", "float32", "auto")
    each = options.prompts // (2 * ROUNDS)
    tokens = RefusalTokens((65,), ("A",), "given")

    def collect(i: int) -> None:
        refusal.collect(model, prompts(i, each), tokens=tokens, filter=False)

    def complete(i: int) -> None:
        texts = [prompt.text for prompt in prompts(i, options.completions // ROUNDS).harmful]
        model.generate(texts, options.new_tokens)

    for name, work, n in (("collected", collect, 2 * each), ("completed", complete, options.completions // ROUNDS)):
        held = []
        for i in range(ROUNDS):
            work(i)
            gc.collect()
            held.append(psutil.Process().memory_info().rss)
            print(f"{(i + 1) * n:6} {name}: {held[-1] / 2**20:,.0f} MiB")
        print(f"growth: {slope(held[ROUNDS // 2 :]) / n:,.0f} bytes a prompt\n")


def prompts(turn: int, n: int) -> PromptPair:
    """Different prompts in every round, of 5 to 40 words."""
    words = ["river", "stone", "light", "music", "market", "winter", "garden", "letter", "engine", "colour"]

    def text(label: str, i: int) -> str:
        return " ".join(words[(i * 7 + k * k + turn) % len(words)] for k in range(5 + i % 36)) + f" {label} {turn} {i}"

    made = {label: tuple(Prompt(f"{label}-{turn}-{i}", text(label, i), label) for i in range(n))
            for label in ("harmful", "harmless")}  # fmt: skip
    return PromptPair(made["harmful"], made["harmless"])


def slope(values: list[int]) -> float:
    """Of a straight line through the values, a step."""
    x = torch.arange(len(values), dtype=torch.float64)
    y = torch.tensor(values, dtype=torch.float64)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


if __name__ == "__main__":
    main()
