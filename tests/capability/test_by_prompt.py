"""Benchmarks under interventions that act by a monitor: prompts in the chat template, each decided
by itself.
"""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_files import bench_folder, roomy_model, some_direction
from lm_eval.api.instance import Instance

from refusal import Add, ChatModel, ConfigError, make_config
from refusal.core.errors import DirectionError
from refusal.evaluations.capability.shared import make_harness
from refusal.evaluations.capability.stage import Capability
from refusal.interventions.conditional import Conditional
from refusal.prompts.load import load_prompts
from refusal.runs.stage import Asked

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_conditional import PROMPTS, gate, halved, monitor_of

TASKS = ("arc_challenge", "gsm8k_cot:2")
UNTIL: dict[str, Any] = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}


def answers(model: ChatModel, exact: bool, edits: Any, chat: bool = True) -> list[Any]:
    """What lm-eval is told of each prompt: two likelihoods, and what is written."""
    harness = make_harness(model, "test", exact, 4)
    found = []
    texts = list(PROMPTS)
    if chat:
        turns = [[{"role": "user", "content": text}] for text in PROMPTS]
        texts = [harness.apply_chat_template(turn) for turn in turns]
    pairs = [(text, answer) for text in texts for answer in ("Yes", "No, it is not")]
    with model.apply(*edits):
        asked = [
            Instance("loglikelihood", {}, pair, i, ("t", i, 1)) for i, pair in enumerate(pairs)
        ]
        likely = harness.loglikelihood(asked)
        writes = [(text, dict(UNTIL)) for text in texts]
        asked = [Instance("generate_until", {}, w, i, ("t", i, 1)) for i, w in enumerate(writes)]
        written = harness.generate_until(asked)
    for i, text in enumerate(written):
        found.append(
            (text, [pytest.approx(value, abs=1e-3) for value, _ in likely[2 * i : 2 * i + 2]])
        )
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_each_item_is_answered_as_its_prompt_decides(exact: bool) -> None:
    model = roomy_model()
    decided, fires = halved(model)
    add = Add(some_direction(), 12.0)
    plain, base = answers(model, exact, [add]), answers(model, exact, [])
    assert all(a[0] != b[0] for a, b in zip(plain, base, strict=True))
    expected = [a if fire else b for a, b, fire in zip(plain, base, fires, strict=True)]
    found = answers(model, exact, [Conditional(add, decided)])
    assert [text for text, _ in found] == [text for text, _ in expected]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert [each.expected for each in one] == other
    never = Conditional(add, gate(model, monitor_of(model, math.inf)))
    assert [text for text, _ in answers(model, exact, [never])] == [text for text, _ in base]
    with pytest.raises(DirectionError, match="task-chat"):
        answers(model, exact, [never], chat=False)


def test_a_run_without_the_template_is_refused_before_anything_slow(tmp_path: Path) -> None:
    monitor_of(roomy_model()).save(tmp_path / "monitor")
    config = make_config(
        tasks=TASKS,
        data_dir=str(bench_folder(tmp_path)),
        interventions=("conditional-ablation",),
        condition_on=str(tmp_path / "monitor"),
    )
    with pytest.raises(ConfigError, match="--task-chat"):
        Capability(Asked(config, load_prompts(), {}, tmp_path))
