"""Prompts in three splits: the built-in set, the paper's, or the user's own files.

Whatever the source: pools are shuffled by the seed into drawing order, and prompts of a training or validation pool
that are near-duplicates of a later split's are removed and counted.
"""

import json
import random
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from refusal.errors import ConfigError, PromptError
from refusal.prompts.files import read_file
from refusal.prompts.published_rows import ADVBENCH_ROWS
from refusal.prompts.similarity import drop_exact_duplicates, drop_near_duplicates
from refusal.prompts.sources import read_source
from refusal.records import Label, Prompt, PromptPair, PromptSplits

Dedup = Literal["near", "exact"]
Pools = dict[str, tuple[Prompt, ...]]  # by split

PUBLISHED_SEED = 42  # of the paper's split of the harmless prompts
OWN_SHARES = (0.6, 0.2)  # train and val share of files that name no splits; the rest is test


def load_prompts(
    name: str | Sequence[str] = "builtin",
    *,
    seed: int = 42,
    dedup: Dedup = "near",
    data_dir: str | Path | None = None,
    column: str | None = None,
) -> PromptSplits:
    """Load a prompt set.

    Args:
        name: ``builtin``, ``paper``, or one or more files (``harmful=bad.txt``, ``all.csv``). A class for which no
            file is given comes from the built-in set.
        seed: shuffles every pool into its drawing order.
        dedup: ``near`` drops near-duplicates of later splits; ``exact`` only identical texts, which gives the
            published pools of the paper.
        data_dir: folder of already downloaded source files.
        column: name of the text column of the user's files.

    Raises:
        PromptError: a file or source that cannot be read.
        ConfigError: unknown ``dedup``.
    """
    if dedup not in ("near", "exact"):
        raise ConfigError(f"Unknown dedup {dedup!r}. Use near or exact.")
    names = [name] if isinstance(name, str) else list(name)
    folder = Path(data_dir).expanduser() if data_dir is not None else None
    if folder is not None and not folder.is_dir():
        raise PromptError(f"There is no folder {folder}. Give the folder of the source files with --data-dir.")
    matched: tuple[Prompt, ...] = ()
    tested: dict[str, tuple[str, ...]] = {}
    if names == ["builtin"]:
        harmful, harmless, matched = _builtin()
    elif names == ["paper"]:
        harmful, harmless = _paper_harmful(folder), _paper_harmless(folder)
        tested = {"harmful": ("jailbreakbench",)}
    else:
        harmful, harmless = _own(names, column, seed)
    pools: dict[str, Pools] = {}
    counts: dict[str, int] = {}
    for label, pool in (("harmful", harmful), ("harmless", harmless)):
        pools[label] = _deduplicate(pool, dedup, label, counts)
        for split, prompts in pools[label].items():
            counts[f"{label}_{split}"] = len(prompts)
        if label in tested:  # the other test sources only guard against leakage
            keep = tested[label]
            pools[label]["test"] = tuple(p for p in pools[label]["test"] if p.id.rsplit("-", 1)[0] in keep)
    splits = {
        split: PromptPair(
            harmful=_shuffled(pools["harmful"][split], seed), harmless=_shuffled(pools["harmless"][split], seed)
        )
        for split in ("train", "val", "test")
    }
    return PromptSplits(name="+".join(names), **splits, counts=counts, matched=matched)


def _builtin() -> tuple[Pools, Pools, tuple[Prompt, ...]]:
    """The set written for this project, with its fixed splits."""
    pools: dict[str, dict[str, list[Prompt]]] = {}
    for line in resources.files("refusal.prompts").joinpath("builtin.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        label: Label = "harmful" if row["label"] == "harmful" else "harmless"
        prompt = Prompt(row["id"], row["text"], label, row["category"])
        pools.setdefault(row["label"], {"train": [], "val": [], "test": []})[row["split"]].append(prompt)
    frozen = {kind: {split: tuple(items) for split, items in pool.items()} for kind, pool in pools.items()}
    return frozen["harmful"], frozen["harmless"], tuple(p for items in frozen["matched"].values() for p in items)


def _paper_harmful(folder: Path | None) -> Pools:
    """AdvBench (the rows that the paper drew), MaliciousInstruct, TDC2023 / HarmBench val / three test sets."""

    def prompts(*names: str) -> list[Prompt]:
        return [
            Prompt(f"{name}-{i}", text, "harmful", category)
            for name in names
            for i, (text, category) in enumerate(read_source(name, folder))
        ]

    advbench = prompts("advbench")
    return {
        "train": tuple(
            [advbench[i] for i in ADVBENCH_ROWS] + prompts("malicious_instruct", "tdc2023_dev", "tdc2023_test")
        ),
        "val": tuple(prompts("harmbench_val")),
        "test": tuple(prompts("jailbreakbench", "harmbench_test", "strongreject")),
    }


def _paper_harmless(folder: Path | None) -> Pools:
    """Alpaca instructions without inputs, in the paper's own 60/20/20 split."""
    pool = [Prompt(f"alpaca-{i}", text, "harmless", c) for i, (text, c) in enumerate(read_source("alpaca", folder))]
    random.Random(PUBLISHED_SEED).shuffle(pool)
    first, second = int(0.6 * len(pool)), int(0.6 * len(pool)) + int(0.2 * len(pool))
    return {"train": tuple(pool[:first]), "val": tuple(pool[first:second]), "test": tuple(pool[second:])}


def _own(specs: Sequence[str], column: str | None, seed: int) -> tuple[Pools, Pools]:
    """The user's files; rows without a split are dealt out by the seed."""
    rows = [row for spec in specs for row in read_file(spec, column)]
    pools: dict[str, Pools] = {}
    for label in ("harmful", "harmless"):
        own = [row for row in rows if row.prompt.label == label]
        named = {s: [r.prompt for r in own if r.split == s] for s in ("train", "val", "test")}
        free = list(_shuffled([r.prompt for r in own if r.split is None], seed))
        first = round(OWN_SHARES[0] * len(free))
        second = first + round(OWN_SHARES[1] * len(free))
        dealt = {"train": free[:first], "val": free[first:second], "test": free[second:]}
        pools[label] = {split: (*named[split], *dealt[split]) for split in named}
    if not rows:
        raise PromptError("No prompt files were given. Use builtin, paper, or paths of files.")
    builtin_harmful, builtin_harmless, _ = _builtin()
    fallback = {"harmful": builtin_harmful, "harmless": builtin_harmless}
    complete = {label: pool if any(pool.values()) else fallback[label] for label, pool in pools.items()}
    return complete["harmful"], complete["harmless"]


def _deduplicate(pools: Pools, dedup: Dedup, label: str, counts: dict[str, int]) -> Pools:
    """Remove from train what recurs in val or test, and from val what recurs in test."""
    drop = drop_near_duplicates if dedup == "near" else drop_exact_duplicates
    train, from_train = drop(pools["train"], [*pools["val"], *pools["test"]])
    val, from_val = drop(pools["val"], pools["test"])
    counts[f"removed_{label}_train"] = from_train
    counts[f"removed_{label}_val"] = from_val
    return {"train": train, "val": val, "test": pools["test"]}


def _shuffled(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    order = list(prompts)
    random.Random(seed).shuffle(order)
    return tuple(order)
