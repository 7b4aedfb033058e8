"""The embedded model with most of its weights on the disk: the same means, choice and completions,
and what it costs.

    python benchmarks/offload.py [--memory 3GiB]

Small: 8 prompts a class for the means, 4 for selection among every fourteenth layer, 3 completions
of 6 tokens.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch

import refusal
from refusal import ChatModel, RefusalTokens
from refusal.directions.selection.select import HowToSearch

T = TypeVar("T")
TOKENS = RefusalTokens((40,), ("I",), "given")


def timed(name: str, work: Callable[[], T]) -> T:
    """Do it and print how long it took."""
    start = time.perf_counter()
    result = work()
    print(f"{name:10} {time.perf_counter() - start:8.1f} s")
    return result


def small_job(model: ChatModel) -> tuple[torch.Tensor, object, list[str]]:
    """Means, choice and completions."""
    prompts = refusal.load_prompts("builtin")
    means = timed(
        "collect", lambda: refusal.collect(model, prompts.train, n=8, tokens=TOKENS, filtered=False)
    )
    candidates = refusal.difference_in_means(means)
    chosen = timed(
        "select",
        lambda: refusal.select(
            model,
            candidates,
            prompts.val,
            n=4,
            filtered=False,
            how=HowToSearch(layer_step=14, resamples=0),
        ),
    )
    with model.apply(refusal.Ablate(chosen.direction)):
        texts = timed(
            "complete", lambda: model.generate([p.text for p in prompts.test.harmless[:3]], 6)
        )
    return candidates.vectors, chosen.score, texts


def main() -> None:
    """Both, and whether they agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", default="3GiB", help="what may stay in memory")
    given = parser.parse_args()
    print("in memory")
    plain = small_job(refusal.load("embedded", dtype="float32"))
    spread = refusal.load(
        "embedded", dtype="float32", device_map="auto", max_memory=(f"cpu={given.memory}",)
    )
    away = sum(p.numel() * p.element_size() for p in spread.hf.parameters() if p.is_meta)
    print(f"{away / 1e9:.2f} GB on the disk")
    found = small_job(spread)
    print(f"means differ by {float((plain[0] - found[0]).abs().max()):.1e}")
    print(
        f"the same choice and scores: {plain[1] == found[1]}; the same completions: "
        f"{plain[2] == found[2]}"
    )


if __name__ == "__main__":
    main()
