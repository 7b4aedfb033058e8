"""examples/vllm_rows.py in vLLM itself, against the hooks: every prompt under every condition, in one queue.

vLLM pins another transformers than this package, so it has an environment of its own, and these tests are skipped unless
`REFUSAL_VLLM` names the Python of one (`REFUSAL_VLLM=/opt/vllm/bin/python pytest tests/engines/test_vllm_rows.py`).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import refusal
from refusal import Direction
from refusal.interventions.conditions import interventions_for

PYTHON = os.environ.get("REFUSAL_VLLM")
ROOT = Path(__file__).parents[2]
CONDITIONS = ("baseline", "ablation", "addition", "subtraction", "ablation@0.5")
# A head of 32, which is the least that vLLM has kernels for on a processor.
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "head_dim": 32,
}
NEW = 12
TEXTS = [
    "Name three rivers.",
    "How does rain form?",
    "Write a poem about the sea.",
    "What is 12 times 9?",
    "List two mammals.",
    "Why is the sky blue?",
]
# Fewer rows than requests, and fewer tokens a pass than are waiting: prompts are read in parts, and rows leave and move.
ASK = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt

def main(given):
    llm = LLM(given["model"], dtype="float32", max_model_len=512, max_num_seqs=7, max_num_batched_tokens=64,
              enforce_eager=given["eager"], generation_config="vllm", load_format="refusal",
              logits_processors=["vllm_rows:Rows"], enable_prefix_caching=given["cached"],
              additional_config={"refusal": given["direction"]})
    params = [SamplingParams(max_tokens=given["new"], temperature=0, ignore_eos=True, extra_args={"refusal": c})
              for c in given["conditions"]]
    out = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in given["prompts"]], params, use_tqdm=False)
    print("WRITTEN", json.dumps([list(o.outputs[0].token_ids) for o in out]), flush=True)

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason="REFUSAL_VLLM names no Python of an environment that has vLLM"
    ),
]


def planted(folder: Path, family: str, rank: int = 1) -> tuple[refusal.ChatModel, Direction]:
    """A tiny model in a folder, and a direction of it in a file, of several rows where asked."""
    changes = {} if family != "llama" else {"mlp_bias": True, "attention_bias": True}
    tiny_models.network(family, **SHAPE, **changes).save_pretrained(folder / "model")
    tiny_models.tokenizer().save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(5)
    rows = torch.linalg.qr(torch.randn(SHAPE["hidden_size"], rank, generator=generator))[0].T
    rows = rows.contiguous()
    direction = Direction(
        vector=rows[0].clone(),
        norm=4.0,
        position=-1,
        layer=2,
        model=str(folder / "model"),
        basis=rows if rank > 1 else None,
        row_places=((-1, 2),) * rank if rank > 1 else (),
    )
    direction.save(folder / "direction.safetensors")
    return refusal.load(str(folder / "model"), dtype="float32"), direction


def under_hooks(
    model: refusal.ChatModel, direction: Direction, condition: str, prompt: list[int]
) -> list[int]:
    """Greedy tokens, each from a pass over all before it."""
    tokens = list(prompt)
    with model.apply(*interventions_for(condition, direction)), torch.no_grad():
        for _ in range(NEW):
            tokens.append(int(model.hf(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def in_vllm(folder: Path, **given: Any) -> "subprocess.CompletedProcess[str]":
    """What vLLM prints in a process of its own environment."""
    script = folder / "ask.py"
    script.write_text(ASK, encoding="utf-8")
    told = {
        "model": str(folder / "model"),
        "direction": str(folder / "direction.safetensors"),
        "new": NEW,
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "examples"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [str(PYTHON), str(script), json.dumps({**told, **given})],
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize(
    ("family", "rank", "eager"),
    [
        ("llama", 1, True),
        ("llama", 2, False),
        ("mistral", 1, True),
        ("qwen2", 1, True),
        ("qwen3", 1, True),
    ],
)
def test_each_request_gets_what_it_asks_for(
    tmp_path: Path, family: str, rank: int, eager: bool
) -> None:
    model, direction = planted(tmp_path, family, rank)
    prompts = [list(map(int, ids)) for ids in model.tokenize(TEXTS)]
    asked = [(condition, ids) for ids in prompts for condition in CONDITIONS]
    expected = [under_hooks(model, direction, condition, ids) for condition, ids in asked]
    by_condition = {c: expected[i :: len(CONDITIONS)] for i, c in enumerate(CONDITIONS)}
    for one in CONDITIONS[1:]:
        assert by_condition[one] != by_condition["baseline"], f"{one} shows nothing"
    done = in_vllm(
        tmp_path,
        eager=eager,
        cached=False,
        conditions=[condition for condition, _ in asked],
        prompts=[ids for _, ids in asked],
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("WRITTEN ")]
    assert lines, done.stderr[-2000:]
    assert json.loads(lines[0].removeprefix("WRITTEN ")) == expected


@pytest.mark.parametrize(
    ("condition", "cached", "said"),
    [
        ("nonsense", False, "There is no condition 'nonsense'"),
        ("ablation", True, "A prefix that was read under one condition"),
    ],
)
def test_what_would_be_wrong_is_refused(
    tmp_path: Path, condition: str, cached: bool, said: str
) -> None:
    model, _ = planted(tmp_path, "llama")
    prompts = [list(map(int, ids)) for ids in model.tokenize(TEXTS[:1])]
    done = in_vllm(tmp_path, eager=True, cached=cached, conditions=[condition], prompts=prompts)
    assert done.returncode != 0
    assert said in done.stderr + done.stdout
