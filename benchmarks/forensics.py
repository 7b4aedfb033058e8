"""Examination of weights: how often it is right, and what it takes.

    python benchmarks/forensics.py             # counts over tiny models of many families: a table
    python benchmarks/forensics.py --memory    # peak memory and seconds on a checkpoint of 4.3 GB

The counts: every edit of ``kinds`` on a tiny model of every family, layer by layer, as a table for
docs/forensics.md. The edits are plain code (tests/weight_edits.py), fine-tuning is real (AdamW).
The memory: a checkpoint in Llama-3-8B's widths is made, edited by ``export --stream``'s code and
examined in a process of its own, with its base and without.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from machine import peak_memory
from streaming import EXTRA, make_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import weight_edits as edits
from edited import Tiny
from weight_edits import Edit, Place, everywhere, projection, then

from refusal import Direction
from refusal.audits.forensics.alone import examine_weights
from refusal.audits.forensics.examine import compare_weights
from refusal.weights.checkpoint import open_checkpoint
from refusal.weights.checkpoint_stream import stream_model

FAMILIES = (
    "llama",
    "gemma2",
    "gpt2",
    "mixtral",
    "gpt_oss",
    "falcon-new",
    "qwen3_moe",
    "mamba2",
    "jamba",
    "zamba2",
    "qwen3_5",
    "gemma3",
    "llama4",
    "deepseek_v3",
    "lfm2",
    "olmo2",
)


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to put the checkpoints for a while")
    parser.add_argument("--families", nargs="*", default=FAMILIES)
    parser.add_argument("--child", nargs="+", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1 if not options.memory and not options.child else 2)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="forensics-") as temporary:
        if options.child:
            examine(*options.child)
        elif options.memory:
            memory(Path(temporary), options.blocks)
        else:
            count(Path(temporary), options.families)


def kinds(tiny: Tiny) -> Iterator[tuple[str, str, Edit, float | None]]:
    """The group of an edit, its name, the edit, and its strength where it is one number."""
    u, v = tiny.u, tiny.v
    for a in (0.3, 0.5, 0.8, 1.0, 1.2, 1.5):
        yield "strength .3 to 1.5", f"{a}", projection(u, everywhere(a)), a
    yield "reflection, inverted", "2", projection(u, everywhere(2.0)), 2.0
    yield "reflection, inverted", "-1", projection(u, everywhere(-1.0)), -1.0
    for keep in ("column", "row"):
        for a in (0.5, 1.0, 1.5):
            yield f"norms of {keep}s kept", f"{a}", projection(u, everywhere(a), keep), a
    tent = edits.tent(1.2, 0.3, 2, 2)
    yield "tent kernels", "plain", projection(u, tent), None
    yield "tent kernels", "rows kept", projection(u, tent, "row"), None

    def by_part(place: Place) -> float:
        return 0.0 if place.layer is None else 1.3 if place.component == "attention" else 0.6

    yield "tent kernels", "two strengths", projection(u, by_part, "row"), None
    for b in (1.0, 0.6):
        yield "two directions", f"{b}", edits.two_directions(u, v, 1.0, b), None
    for lr in (1e-4, 1e-3):
        for a in (0.3, 1.0):
            edit = projection(u, everywhere(a))
            yield "fine-tuned afterwards", f"{lr} {a}", then(edit, tiny.trained(lr)), a
            yield "fine-tuned before", f"{lr} {a}", then(tiny.trained(lr), edit), a

    for rank in (1, 2, 4, 16):
        yield "LoRA, rank 1 to 16", f"{rank}", edits.lora(rank, 0.1, rank), 0.0
    yield "LoRA, rank 1 to 16", "large", edits.lora(1, 1.0, 9), 0.0
    for lr in (1e-4, 1e-3, 1e-2):
        yield "fine-tuning", f"{lr}", tiny.trained(lr), 0.0
        yield "fine-tuning", f"{lr} and decay", tiny.trained(lr, 6, 1.0), 0.0
    for by in (0.01, 0.3):
        yield "weight decay", f"{by}", edits.decay(by), 0.0
    yield "weight decay", "and LoRA", then(edits.lora(1, 0.1, 3), edits.decay(0.1)), 0.0
    other = edits.noise(1.0, 2)(tiny.tensors, tiny.places)
    for share in (0.1, 0.5):
        yield "merges", f"{share}", edits.merged(other, share), 0.0
    for bits in (8, 4, 3):
        yield "quantised and read back", f"{bits}", edits.quantised(bits), 0.0
    yield "noise", "1%", edits.noise(0.01, 4), 0.0
    yield "noise", "10%", edits.noise(0.1, 4), 0.0


def count(folder: Path, families: list[str]) -> None:
    """Print a table: by group how many changed layers, how many were flagged, how near."""
    found: dict[str, list[tuple[bool, float, float]]] = {}
    meant: dict[str, bool] = {}
    for family in families:
        start = time.perf_counter()
        tiny = Tiny(folder / family, family)
        for group, name, edit, strength in kinds(tiny):
            touched = tiny.touched(edit)
            record = compare_weights(
                str(tiny.candidate(edit)), str(tiny.folder), writers=tiny.writers
            ).record
            meant[group] = strength != 0.0
            for layer in record.layers:
                if layer.layer not in touched:
                    continue
                gap = abs(layer.along[0].strength - strength) if strength and layer.along else 0.0
                cosine = min(layer.cosines, default=1.0)
                found.setdefault(group, []).append((layer.holds, cosine, gap))
                if layer.holds != meant[group]:
                    print(f"WRONG {family} {group} {name} layer {layer.layer}", file=sys.stderr)
        print(f"{family}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print("| what was done | layers | flagged | cosine at least | strength off by at most |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for expected in (True, False):
        for group, rows in found.items():
            if meant[group] == expected:
                row(group, rows, expected)
        every = [one for group, rows in found.items() if meant[group] == expected for one in rows]
        row("**all edits by projection**" if expected else "**all others**", every, expected)


def row(name: str, rows: list[tuple[bool, float, float]], expected: bool) -> None:
    """One line of the table."""
    flagged = sum(holds for holds, _, _ in rows)
    cosine = f"{min(cosine for _, cosine, _ in rows):.4f}" if expected else ""
    by_layer = name == "tent kernels"  # which tests/forensics compares
    gap = "by layer" if by_layer else f"{max(gap for _, _, gap in rows):.3f}" if expected else ""
    print(f"| {name} | {len(rows):,} | {flagged:,} | {cosine} | {gap} |")


def memory(folder: Path, blocks: int) -> None:
    """Peak memory and seconds of both ways, each in a process of its own."""
    source, out = folder / "base", folder / "edited"
    total = make_checkpoint(source, blocks)
    checkpoint = open_checkpoint(source)
    largest = max(entry.nbytes for entry in checkpoint.entries.values())
    noise = torch.randn(
        checkpoint.config["hidden_size"], generator=torch.Generator().manual_seed(0)
    )
    stream_model(source, Direction(noise / noise.norm(), 1.0, -1, 2), out)
    limit = 2 * largest + EXTRA
    print(
        f"{total / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB, limit {limit / 1e9:.2f} GB"
    )
    for words in ([str(out), str(source)], [str(out)]):
        command = [sys.executable, __file__, "--child", *words]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found = json.loads(run.stdout)
        way = "with its base" if len(words) > 1 else "without"
        print(f"{way}: {found['seconds']:.0f} s, {found['processor']:.0f} s of processor, peak "
              f"{found['peak'] / 1e9:.2f} GB; {found['verdict']}", flush=True)  # fmt: skip
        if found["peak"] > limit:
            sys.exit("the peak is above the limit")


def examine(candidate: str, base: str | None = None) -> None:
    """In the process of its own: examine, and print what it took as JSON."""
    start = time.perf_counter()
    if base is None:
        record, _ = examine_weights(candidate)
    else:
        record = compare_weights(candidate, base).record
    found = {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time(),
        "peak": peak_memory(torch.device("cpu")),
        "verdict": record.verdict,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
