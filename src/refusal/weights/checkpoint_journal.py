"""Which job a folder that is being written belongs to, so that the same command goes on with it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from refusal.config.exports import NormRule
from refusal.core.errors import ExportError
from refusal.interventions.ablate_add import Ablate
from refusal.weights.checkpoint import Checkpoint

JOURNAL = ".refusal-export.json"
FORMAT = 2


def job_of(checkpoint: Checkpoint, ablation: Ablate, norm: NormRule | None) -> str:
    """One hash over the ablation and over which files they are that are edited: names, sizes,
    times, headers.
    """
    files = [checkpoint.folder / "config.json", *(shard.path for shard in checkpoint.shards)]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(
        json.dumps([FORMAT, str(checkpoint.folder.resolve()), stats, norm]).encode()
    )
    digest.update(repr((ablation.alpha, ablation.kernel, ablation.per_layer)).encode())
    for tensor in (ablation.direction.rows, ablation.direction.by_layer):
        if tensor is not None:
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def check_folder(checkpoint: Checkpoint, out: Path, job: str) -> None:
    """The new folder is empty, or holds a part of this very job."""
    if out.resolve() == checkpoint.folder.resolve():
        raise ExportError(f"{out} is the model's own folder. Give another --out.")
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file. Give a folder with --out.")
    if not any(out.iterdir()):
        return
    try:
        journal: Any = json.loads((out / JOURNAL).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(
            f"{out} exists and is not empty. Give another --out, or delete it."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(
            f"{out / JOURNAL} cannot be read ({error}). Delete the folder, or give another --out."
        ) from error
    if not isinstance(journal, dict) or journal.get("job") != job:
        raise ExportError(
            f"{out} holds an unfinished export of another model or direction. Delete it, or give "
            "another --out."
        )
