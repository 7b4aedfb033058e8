"""Are the numbers of two runs equal? For a change that must not change any.

    python benchmarks/same_run.py make before     # with the code as it was
    python benchmarks/same_run.py make after      # with the code as it is now
    python benchmarks/same_run.py compare before/run after/run

``make`` does a fixed run of a tiny random model: every stage that needs no download, float32, fixed
prompts. ``compare`` takes any two run folders. It reads every JSON, JSONL and safetensors file but
the manifest (hashes, times, the machine): metrics, scores, candidates, directions, completions,
verdicts, drift, judgements. Numbers may differ by ``--tolerance``; all else must be equal, and so
must the names of the files. Exit code 1 and the first differences if not.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

COMPARED = (".json", ".jsonl", ".safetensors")
SHOWN = 20  # differences that are printed
Place = tuple[str, Any, Any]  # where, before, after


def main() -> None:
    """Make the fixed run, or compare two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make", help="a fixed run, in FOLDER/run")
    making.add_argument("folder", type=Path)
    comparing = verbs.add_parser("compare", help="two run folders")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--tolerance", type=float, default=1e-6)
    given = parser.parse_args()
    if given.verb == "make":
        make(given.folder)
    else:
        sys.exit(compare(given.before, given.after, given.tolerance))


def make(folder: Path) -> None:
    """Write the tiny model and its prompts, and run on them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import report_runs

    folder.mkdir(parents=True)
    print(report_runs.make(folder, judges=("substring",)))


def compare(before: Path, after: Path, tolerance: float) -> int:
    """Print how the runs differ; the exit code."""
    names, others = files(before), files(after)
    if not names or not others:
        print(f"{before if not names else after} holds no files of a run.")
        return 2
    different: list[Place] = [
        (name, name in names, name in others) for name in sorted(names ^ others)
    ]
    largest = 0.0
    for name in sorted(names & others):
        for place in differences(read(before / name), read(after / name), name):
            gap = distance(place[1], place[2])
            largest = max(largest, gap if math.isfinite(gap) else largest)
            if not gap <= tolerance:
                different.append(place)
    print(f"{len(names & others)} files compared, largest difference of a number {largest:.3g}")
    for where, one, other in different[:SHOWN]:
        print(f"{where}: {str(one)[:80]!r} and {str(other)[:80]!r}")
    if len(different) > SHOWN:
        print(f"... and {len(different) - SHOWN} more")
    return 1 if different else 0


def files(run: Path) -> set[str]:
    """What is compared of a run folder, by name; hidden files are locks and what is being written."""
    found = set()
    for path in run.rglob("*"):
        name = path.relative_to(run)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix in COMPARED and not hidden and name.name != "manifest.json":
            found.add(name.as_posix())
    return found


def read(path: Path) -> Any:
    """A file as numbers, texts, lists and dicts; a tensor as an array."""
    if path.suffix == ".safetensors":
        return load_file(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line]
    return json.loads(text)


def differences(one: Any, other: Any, where: str) -> Iterator[Place]:
    """Every pair of values that are not equal, with its place."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differences(one.get(key), other.get(key), f"{where} {key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where} [{index}]")
    elif isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.shape != other.shape or one.dtype != other.dtype:
            yield f"{where} shape", (one.shape, str(one.dtype)), (other.shape, str(other.dtype))
        elif not np.array_equal(one, other, equal_nan=True):
            wide = np.abs(one.astype(np.float64) - other.astype(np.float64))
            alike = (one == other) | (np.isnan(one) & np.isnan(other))
            worst = np.unravel_index(
                np.argmax(np.where(alike, -1.0, np.nan_to_num(wide, nan=np.inf))), wide.shape
            )
            yield f"{where} {[int(i) for i in worst]}", float(one[worst]), float(other[worst])
    elif one != other or type(one) is not type(other):
        yield where, one, other


def distance(one: Any, other: Any) -> float:
    """Of two numbers; infinite where either is none, or not finite."""
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)
    )
    gap = abs(one - other) if numbers else math.inf
    return math.inf if math.isnan(gap) else gap


if __name__ == "__main__":
    main()
