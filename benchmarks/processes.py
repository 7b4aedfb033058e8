"""One run shared by several processes of one thread each: what they take, and that they find what
one finds.

    python benchmarks/processes.py [--processes 1 2 4]

A small random model (12 blocks of width 512), so that several copies fit into caches and memory:
extraction, selection among 24 candidates and completions of a run, by their manifests. On fewer
cores than processes they take turns.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from refusal import Direction

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_models

SHAPE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 8192, "max_position_embeddings": 1024, "eos_token_id": 4}  # fmt: skip
# Random weights refuse nothing, so no filter; and thresholds that all meet, so that bypass decides.
OPTIONS = shlex.split(
    "--no-filter --refusal-tokens I A --induce-threshold -1000 --kl-threshold 1000 --n-train 64 "
    "--n-val 12 --n-test 24 --layer-step 3 --max-new-tokens 24 --controls 0 --drift-tokens 0 "
    "--resamples 0 --dtype float32 --device cpu --figures none --json"
)
STAGES = ("extract", "select", "generate")


def main() -> None:
    """A run for each number of processes, and a table of their stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = write_model(Path(scratch) / "model")
        first: dict[str, Any] | None = None
        print(
            "| processes | "
            + " | ".join(f"{stage}, s | tokens" for stage in STAGES)
            + " | as the first |"
        )
        for n in given.processes:
            found = measure(model, Path(scratch) / f"run-{n}", n)
            first = first or found
            cells = [f"{found[stage][0]:.1f} | {found[stage][1]:,}" for stage in STAGES]
            print(
                f"| {n} | " + " | ".join(cells) + f" | {found['result'] == first['result']} |",
                flush=True,
            )


def write_model(folder: Path) -> Path:
    """A checkpoint with random weights and a byte-level tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE)).save_pretrained(folder)
    tiny_models.tokenizer("bare").save_pretrained(folder)
    return folder


def measure(model: Path, out: Path, n: int) -> dict[str, Any]:
    """Seconds and tokens by stage, and what must be the same: the choice and every completion."""
    launcher = (
        ["torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m"] if n > 1 else []
    )
    command = [
        sys.executable,
        "-m",
        *launcher,
        "refusal",
        "run",
        str(model),
        "--out",
        str(out),
        *OPTIONS,
    ]
    subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True
    )
    stages = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["stages"]
    found: dict[str, Any] = {}
    for stage in STAGES:
        of = [value for name, value in stages.items() if name.split()[0] == stage]
        found[stage] = (sum(s["seconds"] for s in of), sum(s["forward_tokens"] for s in of))
    direction = Direction.load(out / "direction.safetensors")
    written = {
        path.name: path.read_text(encoding="utf-8")
        for path in (out / "completions").glob("*.jsonl")
    }
    found["result"] = (direction.position, direction.layer, written)
    return found


if __name__ == "__main__":
    main()
