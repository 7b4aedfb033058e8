"""Prompts in three splits: the built-in set, the paper's, or the user's own files.

Whatever the source: pools are shuffled by the seed into drawing order, and prompts of a training or
validation pool that are near-duplicates of a later split's are removed and counted.
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Literal

from refusal.core.errors import ConfigError, PromptError
from refusal.core.records import Label, Prompt, PromptPair, PromptSplits
from refusal.core.text_files import is_folder, user_path
from refusal.prompts.files import SPLITS
from refusal.prompts.own import Pools, own_pools, refuse_overlap
from refusal.prompts.published_rows import ADVBENCH_ROWS
from refusal.prompts.similarity import (
    drop_exact_duplicates,
    drop_identical_texts,
    drop_near_duplicates,
)
from refusal.prompts.sources import SOURCES, read_source

Dedup = Literal["near", "exact"]
Drop = Callable[[Sequence[Prompt], Sequence[Prompt]], tuple[tuple[Prompt, ...], int]]

PUBLISHED_SEED = 42  # of the paper's split of the harmless prompts


def load_prompts(
    name: str | Sequence[str] = "builtin",
    *,
    seed: int = 42,
    dedup: Dedup = "near",
    data_dir: str | Path | None = None,
    column: str | None = None,
    system: str | None = None,
) -> PromptSplits:
    """Load a prompt set.

    The ``counts`` of the result say how many prompts each split holds and how many were removed
    from it. For ``paper`` the harmful test split is published with 572 prompts of three benchmarks;
    all of them guard against leakage, and the test pool is JailbreakBench's 100
    (``counts["drawn_from_harmful_test"]``).

    Args:
        name: ``builtin``, ``paper``, or one or more files (``harmful=bad.txt``, ``all.csv``). A
            class for which no file is given comes from the built-in set.
        seed: shuffles every pool into its drawing order, and deals out rows of files that name no
            split.
        dedup: ``near`` drops near-duplicates of later splits; ``exact`` only the same prompts in
            whatever case and spacing, and of ``paper`` only identical texts, which gives the
            published pools.
        data_dir: folder of already downloaded source files.
        column: name of the text column of the user's files.
        system: the system prompt that the model is loaded with; rows that carry one must carry this
            one.

    Raises:
        PromptError: a file or source that cannot be read, a prompt in both classes, another system
            prompt, or a split without prompts.
        ConfigError: unknown ``dedup``.
    """
    if dedup not in ("near", "exact"):
        raise ConfigError(f"Unknown dedup {dedup!r}. Use near or exact.")
    names = [name] if isinstance(name, str) else list(name)
    if not names:
        raise PromptError("No prompts were given. Use builtin, paper, or paths of files.")
    folder = user_path(data_dir, PromptError) if data_dir is not None else None
    if folder is not None and not is_folder(folder):
        raise PromptError(
            f"There is no folder {folder}. Give the folder of the source files with --data-dir."
        )
    matched: tuple[Prompt, ...] = ()
    tested: dict[str, str] = {}
    if names == ["builtin"]:
        harmful, harmless, matched = _builtin()
    elif names == ["paper"]:
        harmful, harmless = _paper_harmful(folder), _paper_harmless(folder)
        tested = {"harmful": "jailbreakbench"}
    else:
        own, (builtin_harmful, builtin_harmless, _) = (
            own_pools(names, column, seed, system),
            _builtin(),
        )
        harmful = own["harmful"] if any(own["harmful"].values()) else builtin_harmful
        harmless = own["harmless"] if any(own["harmless"].values()) else builtin_harmless
        refuse_overlap(harmful, harmless)
    exact = drop_identical_texts if names == ["paper"] else drop_exact_duplicates
    drop = drop_near_duplicates if dedup == "near" else exact
    pools: dict[str, Pools] = {}
    counts: dict[str, int] = {}
    for label, pool in (("harmful", harmful), ("harmless", harmless)):
        pools[label] = _deduplicate(pool, drop, label, counts)
        if label in tested:
            pools[label]["test"] = tuple(
                p for p in pools[label]["test"] if p.id.startswith(f"{tested[label]}-")
            )
            counts[f"drawn_from_{label}_test"] = len(pools[label]["test"])
    splits = {}
    for split in SPLITS:
        bad, good = pools["harmful"][split], pools["harmless"][split]
        splits[split] = PromptPair(_shuffled(bad, seed), _shuffled(good, seed))
    return PromptSplits(name="+".join(names), **splits, counts=counts, matched=matched)


def matched_pairs(apart_from: Iterable[Prompt] = ()) -> PromptPair:
    """Built-in harmful prompts and the harmless one written to match each; none of their test
    split.

    ``apart_from``: prompts that are to be tested on; a pair with one of them is left out.
    """
    tested = {prompt.fingerprint for prompt in apart_from}
    harmful, _, _ = _builtin()
    by_id = {prompt.id: prompt for split in ("train", "val") for prompt in harmful[split]}
    pairs = [
        (by_id[row["pair"]], _prompt(row)) for row in _builtin_rows() if row.get("pair") in by_id
    ]
    kept = [pair for pair in pairs if tested.isdisjoint(prompt.fingerprint for prompt in pair)]
    return PromptPair(tuple(first for first, _ in kept), tuple(second for _, second in kept))


def _builtin() -> tuple[Pools, Pools, tuple[Prompt, ...]]:
    """The set written for this project, with its fixed splits."""
    pools: dict[str, dict[str, list[Prompt]]] = {}
    for row in _builtin_rows():
        pools.setdefault(row["label"], {"train": [], "val": [], "test": []})[row["split"]].append(
            _prompt(row)
        )
    frozen = {
        kind: {split: tuple(items) for split, items in pool.items()} for kind, pool in pools.items()
    }
    return (
        frozen["harmful"],
        frozen["harmless"],
        tuple(p for items in frozen["matched"].values() for p in items),
    )


def _builtin_rows() -> list[dict[str, str]]:
    text = resources.files("refusal.prompts").joinpath("builtin.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _prompt(row: dict[str, str]) -> Prompt:
    label: Label = "harmful" if row["label"] == "harmful" else "harmless"
    return Prompt(row["id"], row["text"], label, row["category"])


def _paper_harmful(folder: Path | None) -> Pools:
    """AdvBench (the rows that the paper drew), MaliciousInstruct, TDC2023 / HarmBench val / three
    test sets.
    """

    def prompts(*names: str) -> list[Prompt]:
        found = []
        for name in names:
            for i, (text, category) in enumerate(read_source(name, folder)):
                found.append(Prompt(f"{name}-{i}", text, SOURCES[name].label, category))
        return found

    advbench = prompts("advbench")
    return {
        "train": tuple(
            [advbench[i] for i in ADVBENCH_ROWS]
            + prompts("malicious_instruct", "tdc2023_dev", "tdc2023_test")
        ),
        "val": tuple(prompts("harmbench_val")),
        "test": tuple(prompts("jailbreakbench", "harmbench_test", "strongreject")),
    }


def _paper_harmless(folder: Path | None) -> Pools:
    """Alpaca instructions without inputs, in the paper's own 60/20/20 split."""
    rows = enumerate(read_source("alpaca", folder))
    pool = [Prompt(f"alpaca-{i}", text, SOURCES["alpaca"].label, c) for i, (text, c) in rows]
    random.Random(PUBLISHED_SEED).shuffle(pool)
    first, second = int(0.6 * len(pool)), int(0.6 * len(pool)) + int(0.2 * len(pool))
    return {
        "train": tuple(pool[:first]),
        "val": tuple(pool[first:second]),
        "test": tuple(pool[second:]),
    }


def redealt(prompts: PromptSplits, seed: int) -> PromptSplits:
    """The training and validation prompts of each class dealt out anew, in the same numbers; test
    is not touched.
    """
    pairs: dict[str, dict[str, tuple[Prompt, ...]]] = {"train": {}, "val": {}}
    for label in ("harmful", "harmless"):
        train: tuple[Prompt, ...] = getattr(prompts.train, label)
        everything = _shuffled([*train, *getattr(prompts.val, label)], seed)
        pairs["train"][label], pairs["val"][label] = (
            everything[: len(train)],
            everything[len(train) :],
        )
    return replace(prompts, train=PromptPair(**pairs["train"]), val=PromptPair(**pairs["val"]))


def _deduplicate(pools: Pools, drop: Drop, label: str, counts: dict[str, int]) -> Pools:
    """Remove from train what recurs in val or test, and from val what recurs in test.

    Raises:
        PromptError: a split is left without prompts.
    """
    train, from_train = drop(pools["train"], [*pools["val"], *pools["test"]])
    val, from_val = drop(pools["val"], pools["test"])
    kept = {"train": train, "val": val, "test": pools["test"]}
    counts.update({f"removed_{label}_train": from_train, f"removed_{label}_val": from_val})
    counts.update({f"{label}_{split}": len(prompts) for split, prompts in kept.items()})
    empty = [split for split in SPLITS if not kept[split]]
    if empty:
        sizes = ", ".join(f"{split} {len(kept[split])}" for split in SPLITS)
        alike = (
            "; prompts that are only alike stay with --dedup exact"
            if drop is drop_near_duplicates
            else ""
        )
        raise PromptError(
            f"No {label} prompts are left for {' and '.join(empty)} ({sizes}; "
            f"{from_train + from_val} removed as duplicates of a later split). Give more of them, "
            f"or rows of that split{alike}."
        )
    return kept


def _shuffled(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    order = list(prompts)
    random.Random(seed).shuffle(order)
    return tuple(order)
