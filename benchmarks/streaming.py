"""Streaming orthogonalisation: peak memory and rate on a sharded checkpoint made on the spot.

    python benchmarks/streaming.py                     # 4.7 GB of bfloat16 in Llama-3-8B's widths, and as much again
    python benchmarks/streaming.py --blocks 32         # the whole of it: 16 GB, twice

The checkpoint is made tensor by tensor too. The edit runs in a process of its own, whose largest
resident memory counts: tensors are read with plain reads, so no mapped file swells that number, and
the page cache is no part of it. The tensors of one block and the embedding are then compared with
their projection, computed here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import peak_memory
from transformers import AutoConfig

from refusal import Direction
from refusal.core.storage import write_blocks, write_json
from refusal.weights.checkpoint import INDEX, PIECE, as_bytes, header_bytes, open_checkpoint
from refusal.weights.checkpoint_stream import stream_model
from refusal.weights.projection import project_weight
from refusal.weights.proxy_model import skeleton

SHARD = 10**9
EXTRA = 10**9  # what the limit allows beside twice the largest tensor


def main() -> None:
    """Make the checkpoint, edit it in a process of its own, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument(
        "--folder", default=None, help="where to put both checkpoints; default: a temporary folder"
    )
    parser.add_argument("--child", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        edit(*map(Path, options.child))
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="streaming-") as temporary:
        measure(Path(temporary), options.blocks)


def measure(folder: Path, n_blocks: int) -> None:
    """All of it."""
    source, out, file = folder / "source", folder / "edited", folder / "direction.safetensors"
    start = time.perf_counter()
    total = make_checkpoint(source, n_blocks)
    print(f"made {total / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} shards: "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    checkpoint = open_checkpoint(source)
    largest = max(entry.nbytes for entry in checkpoint.entries.values())
    vector = torch.randn(
        checkpoint.config["hidden_size"], generator=torch.Generator().manual_seed(0)
    )
    direction = Direction(vector / vector.norm(), 1.0, -1, 2)
    direction.save(file)
    run = subprocess.run(
        [sys.executable, __file__, "--child", str(source), str(file), str(out)],
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, Any] = json.loads(run.stdout)
    limit = 2 * largest + EXTRA
    print(
        f"{found['edited']} of {len(checkpoint.entries)} tensors edited, largest tensor "
        f"{largest / 1e9:.2f} GB"
    )
    print(f"peak memory {found['peak'] / 1e9:.2f} GB, limit {limit / 1e9:.2f} GB, "
          f"of it {found['idle'] / 1e9:.2f} GB the interpreter and its libraries")  # fmt: skip
    print(f"{found['plan']:.1f} s to work out the edit; all {found['seconds']:.1f} s, "
          f"{total / 1e6 / found['seconds']:.0f} MB/s")  # fmt: skip
    compare(source, out, direction)
    if found["peak"] > limit:
        sys.exit("the peak is above the limit")


def edit(source: Path, direction: Path, out: Path) -> None:
    """In the process of its own: edit, and print what it took as JSON."""
    idle = peak_memory(torch.device("cpu"))
    start = time.perf_counter()
    report = stream_model(source, Direction.load(direction), out)
    seconds = time.perf_counter() - start
    peak = peak_memory(torch.device("cpu"))
    print(json.dumps({"idle": idle, "peak": peak, "seconds": seconds, "plan": report.planning_seconds,
                      "edited": len(report.edited)}))  # fmt: skip


def compare(source: Path, out: Path, direction: Direction) -> None:
    """Tensors of the edited checkpoint against the definition."""
    before, after = open_checkpoint(source), open_checkpoint(out)
    prefix = "model.layers.1."
    expected = {
        "model.embed_tokens.weight": 1,
        f"{prefix}self_attn.o_proj.weight": 0,
        f"{prefix}mlp.down_proj.weight": 0,
    }
    for name in [
        "model.embed_tokens.weight",
        *(name for name in before.entries if name.startswith(prefix)),
    ]:
        tensor = before.read(name)
        if name in expected:
            tensor = project_weight(tensor, expected[name], direction.vector)
        if not torch.equal(tensor, after.read(name)):
            sys.exit(f"{name} is not what it should be")
    print("the tensors of block 1 and the embedding are bit for bit what they should be")


def make_checkpoint(folder: Path, n_blocks: int) -> int:
    """Write random bfloat16 weights in shards of about a gigabyte; returns the bytes of all
    tensors.
    """
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=n_blocks, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, dtype="bfloat16", tie_word_embeddings=False,
    )  # fmt: skip
    shapes = {
        name: tuple(parameter.shape) for name, parameter in skeleton(config).named_parameters()
    }
    shards: list[list[str]] = [[]]
    for name, shape in shapes.items():
        if (
            shards[-1]
            and sum(nbytes(shapes[other]) for other in shards[-1]) + nbytes(shape) > SHARD
        ):
            shards.append([])
        shards[-1].append(name)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        table = [(name, "BF16", shapes[name], nbytes(shapes[name])) for name in names]
        write_blocks(folder / file, blocks(table))
        places |= dict.fromkeys(names, file)
    total = sum(map(nbytes, shapes.values()))
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    write_json(folder / "config.json", {**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    return total


def blocks(table: list[tuple[str, str, tuple[int, ...], int]]) -> Iterator[bytes | memoryview]:
    """A shard's header and random weights, a piece at a time."""
    yield header_bytes(table, {"format": "pt"})
    for *_, size in table:
        for start in range(0, size, PIECE):
            piece = torch.empty(min(PIECE, size - start) // 2, dtype=torch.bfloat16).normal_(
                std=0.02
            )
            yield as_bytes(piece)


def nbytes(shape: tuple[int, ...]) -> int:
    """Of a bfloat16 tensor."""
    return 2 * torch.Size(shape).numel()


if __name__ == "__main__":
    main()
