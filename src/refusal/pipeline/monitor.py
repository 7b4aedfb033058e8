"""Monitors from options: which prompts they are fitted to, calibrated on and evaluated with."""

import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from refusal.config.monitor import MonitorFit, MonitorSets
from refusal.config.run_config import RunConfig, make_config
from refusal.core.direction import Direction
from refusal.core.monitor import CARD, Monitor
from refusal.core.records import Label, Prompt, PromptPair, PromptSplits
from refusal.core.storage import check_room, remove
from refusal.directions.monitor.fit import FitPrompts, Fitted, fit_monitor
from refusal.evaluations.monitor.evaluate import TEST, PromptSet, evaluate_monitor
from refusal.evaluations.monitor.records import Evaluated, Kind
from refusal.model.chat_model import ChatModel
from refusal.pipeline.asking import prompts_of
from refusal.pipeline.run import load_for
from refusal.prompts.files import read_file
from refusal.prompts.languages import load_language
from refusal.prompts.over_refusal import load_over_refusal
from refusal.prompts.similarity import drop_exact_duplicates, drop_near_duplicates
from refusal.prompts.sources import SOURCES, read_source
from refusal.report.monitor_page import PAGE, RECORD

log = logging.getLogger(__name__)
# A prompt that was written out in ChatML, with what the template puts around it
WRITTEN_OUT = re.compile(
    r"(?:<\|im_start\|>system\n.*?<\|im_end\|>\n)?<\|im_start\|>user\n(?P<said>.*)<\|im_end\|>\n"
    r"<\|im_start\|>assistant\n?",
    re.DOTALL,
)


def run_options(run: Path, given: dict[str, Any]) -> tuple[RunConfig, int]:
    """The configuration of a run, with what was typed, and the layer of its direction.

    Raises:
        DirectionError: it has none yet.
        ConfigError: a value cannot be used.
    """
    config = make_config(file=run / "run.toml")
    layer = Direction.load(run / "direction.safetensors").layer
    return make_config(**{**config.model_dump(exclude_none=True), **given}), layer


def fit_for(config: RunConfig, asked: MonitorFit, out: Path) -> Fitted:
    """Fit a monitor to a model, and write it; what was known of an older one in the folder goes.

    Raises:
        ExportError: the folder holds something else.
        refusal.Error: whatever reading prompts and fitting raise.
    """
    if not (out / CARD).is_file():
        check_room(out, 0)
    splits = prompts_of(config)
    train, val = _first(splits.train, config.n_train), _first(splits.val, config.n_val)
    calibration = _calibration(splits, config, asked, (*_all(train), *_all(val)))
    prompts = FitPrompts(train, val, calibration)
    found = fit_monitor(load_for(config), prompts, eps=asked.eps, layer=asked.layer)
    found.monitor.save(out)
    for name in (PAGE, RECORD):
        remove(out / name)
    return found


def evaluate_for(
    model: ChatModel, monitor: Monitor, config: RunConfig, asked: MonitorSets
) -> Evaluated:
    """Evaluate a monitor on the sets that are asked for.

    Raises:
        PromptError: a set is missing or cannot be used.
        refusal.Error: whatever the evaluation raises.
    """
    notes: list[str] = []
    sets = []
    for one in _sets(config, asked, notes):
        sets.append(replace(one, prompts=_some(one.prompts, asked.n_most, config.seed)))
    return evaluate_monitor(model, monitor, sets, notes)


def _calibration(
    splits: PromptSplits, config: RunConfig, asked: MonitorFit, used: Sequence[Prompt]
) -> tuple[Prompt, ...]:
    """Harmless prompts that the fit does not use: the user's, else those left of its own pools,
    and only where these are too few those written to match harmful ones.
    """
    if asked.calibration:
        pool = [p for path in asked.calibration for p in _file(f"harmless={path}", config)]
        pool = list({p.fingerprint: p for p in pool}.values())
        drop = drop_near_duplicates if config.dedup == "near" else drop_exact_duplicates
        kept, dropped = drop(pool, used)
        if dropped:
            log.warning(
                "%d calibration prompts are much like prompts of the fit, left out.", dropped
            )
        return _some(kept, asked.n_calibration, config.seed)
    left = (*splits.train.harmless[config.n_train :], *splits.val.harmless[config.n_val :])
    return (*left, *splits.matched)[: asked.n_calibration]


def _sets(config: RunConfig, asked: MonitorSets, notes: list[str]) -> Iterator[PromptSet]:
    data = Path(config.data_dir).expanduser() if config.data_dir is not None else None
    for name in asked.sets:
        yield from _test_sets(name, config, data)
    for name in asked.over_refusal:
        kind: Kind = "over-refusal"
        for half, prompts in load_over_refusal(name, seed=config.seed, data_dir=data).items():
            yield PromptSet(half, kind, prompts[0].label, prompts)
    for language in asked.languages:
        published = config.prompts == ("paper",)
        found = load_language(language, data, seed=config.seed, published=published)
        yield PromptSet(f"language-{language}", "language", "harmful", found.test)
    for path in asked.jailbreaks:
        prompts = _file(f"harmful={path}", config)
        written = [WRITTEN_OUT.fullmatch(prompt.text) for prompt in prompts]
        if n := sum(match is not None for match in written):
            notes.append(
                f"{Path(path).name}: {n} of {len(prompts)} prompts were written out in ChatML; "
                "what the user says in them was taken."
            )
        pairs = zip(prompts, written, strict=True)
        told = tuple(replace(p, text=m["said"]) if m is not None else p for p, m in pairs)
        yield PromptSet(Path(path).stem, "jailbreak", "harmful", told)


def _test_sets(name: str, config: RunConfig, data: Path | None) -> Iterator[PromptSet]:
    """The sets of a name: the test split, a public source, or a file."""
    if name == "test":
        test = _first(prompts_of(config).test, config.n_test)
        yield PromptSet("test-harmful", TEST, "harmful", test.harmful)
        yield PromptSet("test-harmless", TEST, "harmless", test.harmless)
    elif name in SOURCES:
        label = SOURCES[name].label
        rows = enumerate(read_source(name, data))
        prompts = [Prompt(f"{name}-{i}", text, label, about) for i, (text, about) in rows]
        yield PromptSet(name, TEST, label, tuple(prompts))
    else:
        found = _file(name, config)
        stem = Path(name.partition("=")[2] or name).stem
        labels: tuple[Label, ...] = ("harmful", "harmless")
        there = [one for one in labels if any(p.label == one for p in found)]
        for one in there:
            full = stem if len(there) == 1 else f"{stem}-{one}"
            yield PromptSet(full, TEST, one, tuple(p for p in found if p.label == one))


def _file(spec: str, config: RunConfig) -> tuple[Prompt, ...]:
    return tuple(row.prompt for row in read_file(spec, config.column, config.system))


def _some(prompts: Sequence[Prompt], n: int | None, seed: int) -> tuple[Prompt, ...]:
    """At most so many of them, drawn by the seed, in their order."""
    if n is None or len(prompts) <= n:
        return tuple(prompts)
    kept = sorted(random.Random(seed).sample(range(len(prompts)), n))
    return tuple(prompts[i] for i in kept)


def _first(pair: PromptPair, n: int) -> PromptPair:
    return PromptPair(pair.harmful[:n], pair.harmless[:n])


def _all(pair: PromptPair) -> tuple[Prompt, ...]:
    return (*pair.harmful, *pair.harmless)
