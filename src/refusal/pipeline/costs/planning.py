"""The estimate of a configuration, and the sizes that fit its minutes: on this machine, before a
model is loaded and after.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.errors import ConfigError
from refusal.core.records import PromptSplits
from refusal.model.batch_size import free_memory
from refusal.model.caches import rows_apart
from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import find_format, render, tokenize
from refusal.model.checkpoint_check import hub_options
from refusal.model.contexts import context_length
from refusal.model.harmless_turns import around_of
from refusal.model.load import loading, resolve
from refusal.model.memory import room_of
from refusal.model.placement import find_device
from refusal.model.sizes import ModelSize, size_of
from refusal.model.thinking_form import find_thinking
from refusal.pipeline.asking import prompts_of
from refusal.pipeline.costs.estimate import (
    SHARING,
    Estimate,
    Machine,
    estimate,
    model_outline,
    seconds_by_stage,
)
from refusal.pipeline.costs.fit import Fitted, fit, sizes, sizes_given
from refusal.pipeline.costs.loaded import loaded_speed
from refusal.pipeline.costs.speed import DEVICES, measure_speed
from refusal.pipeline.lengths import lengths_of
from refusal.runs.stage import Asked, Plan

STARTING = 10.0  # seconds until Python and its libraries are there, and for the report at the end
LOADED, HASHED = 0.5e9, 1e9  # bytes of weights a second


def seconds_beside(weights_bytes: int | float, loading: float | None = None) -> float:
    """What no stage does: starting, loading (``loading`` seconds, where that is known), looking
    at the weights, the report.
    """
    load = weights_bytes / LOADED if loading is None else loading
    return STARTING + load + weights_bytes / HASHED


def within(plan: Plan, prompts: PromptSplits) -> Plan:
    """The plan with no more prompts than there are."""
    config = plan.config
    pools = {"n_train": prompts.train, "n_val": prompts.val, "n_test": prompts.test}
    there = {n: max(1, len(pair.harmful), len(pair.harmless)) for n, pair in pools.items()}
    fewer = {name: min(getattr(config, name), n) for name, n in there.items()}
    return replace(plan, config=config.model_copy(update=fewer))


def fitted_estimate(
    size: ModelSize,
    plan: Plan,
    machine: Machine,
    prompts: PromptSplits | None = None,
    longest: int | None = None,
) -> Estimate:
    """The estimate; where the plan's configuration asks for minutes, with the sizes that fit them.

    Args:
        prompts: the pools, where they are known: what is larger than they are is not counted.
        longest: most new tokens that the model has room for, where that is limited.

    Raises:
        ConfigError: sizes that are given do not fit, or a stage cannot be counted.
    """
    config = plan.config
    if config.minutes is None:
        return estimate(size, plan, machine)

    def estimated(config: RunConfig) -> Estimate:
        one = replace(plan, config=config)
        return estimate(size, one if prompts is None else within(one, prompts), machine)

    def seconds(config: RunConfig) -> float:
        found = estimated(config)
        return found.total_seconds + seconds_beside(found.weights_bytes)

    found = fit(seconds, config, sizes_given(config), config.minutes, plan.layers, longest)
    return replace(estimated(found.config), sizes=sizes(found.config), said=found.said)


def fit_loaded(model: ChatModel, plan: Plan, asked: Asked, loading_took: float) -> Fitted:
    """The sizes that fit the minutes of the plan's configuration, with this model on this machine.

    The speed is measured, in a second or two. Of several processes the first one's counts, and
    all get its sizes.

    Args:
        loading_took: seconds that reading the prompts and loading the model took.

    Raises:
        ConfigError: sizes that are given do not fit, or a stage cannot be counted.
    """
    config, speed, count = plan.config, loaded_speed(model), parallel.world()
    room = room_of(model)
    if not rows_apart(model.hf.config):
        room = replace(room, rows=lambda length: 1)
    beside = seconds_beside(room.weights, loading_took)
    saved = count * SHARING if count > 1 else 1.0

    def seconds(config: RunConfig) -> float:
        one = within(replace(plan, config=config), asked.prompts)
        return beside + sum(seconds_by_stage(one, room.size, speed, room).values()) / saved

    given, minutes = sizes_given(config), config.minutes
    questions = [prompt.question for pool in asked.measured.values() for prompt in pool]
    longest = _room(model.hf.config, model.tokenize(questions), config)
    assert minutes is not None
    return parallel.from_first(lambda: fit(seconds, config, given, minutes, plan.layers, longest))


def _room(model: PreTrainedConfig, rows: Sequence[Sequence[int]], config: RunConfig) -> int | None:
    """Tokens that the model's context leaves for an answer to the longest prompt, after a thought
    of the longest kind where thinking is on.
    """
    context, thought = context_length(model), config.new_tokens - config.max_new_tokens
    return None if context is None else context - max(map(len, rows), default=0) - thought


def estimate_run(config: RunConfig, count: int = 1) -> Estimate:
    """The estimate of a configuration on ``count`` devices of the kind that its ``device`` names,
    or of this machine.

    Raises:
        ModelLoadError: the model's config or tokenizer cannot be read.
        ChatTemplateError: no chat template, or it rejects the system prompt.
        PromptError: a prompt file cannot be used.
        ConfigError: unknown device, or a benchmark that cannot be counted.
    """
    outline = model_outline(config.model, config.revision)
    size = size_of(outline, outline.config)
    prompts = prompts_of(config)
    with loading(config.model):
        options = hub_options(config.revision)
        tokenizer = AutoTokenizer.from_pretrained(resolve(config.model), **options)
    wanted = (config.thinking, config.thinking_tokens)
    thinking = find_thinking(tokenizer, *wanted, config.system)
    around = around_of(config.turns, config.prefill)
    begins = len(find_format(tokenizer, config.system, None, thinking, around).prefix)
    about = (None, thinking, around)
    lengths = lengths_of(tokenizer, config.system, prompts, begins, *about)
    plan = Plan(config, size.layers, lengths)
    test = (*prompts.test.harmful[: config.n_test], *prompts.test.harmless[: config.n_test])
    texts = [render(tokenizer, p.question, config.system, *about) for p in test]
    rows = [tokenize(tokenizer, text) for text in texts]
    if config.device in DEVICES:
        speed, room = DEVICES[config.device]
        kind = "cuda"
    else:
        device = _device_here(config.device)
        speed = measure_speed(device, config.dtype, outline)
        room, kind = free_memory(device), device.type
    machine = Machine(speed, kind, room, count, config.price_per_device_hour)
    return fitted_estimate(size, plan, machine, prompts, _room(outline.config, rows, config))


def _device_here(name: str) -> torch.device:
    try:
        return find_device(name)
    except ConfigError as error:
        raise ConfigError(
            f"{error} Or name a kind that is known by its data sheet: {', '.join(DEVICES)}."
        ) from error
