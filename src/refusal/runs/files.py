"""The files of a run, read back from its folder as records: no model needed.

How files are read is in ``core/strict_files``; here is what each holds, and what must hold between
its fields.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from pydantic import BeforeValidator, Field

from refusal.core.errors import ConfigError, RunFolderError
from refusal.core.lengths import reading_lengths
from refusal.core.records import (
    CandidateScore,
    Choice,
    ClassCount,
    Completion,
    Metric,
    RefusalTokens,
    Stability,
)
from refusal.core.results import SavedMetric
from refusal.core.strict_files import (
    Saved,
    damaged,
    read_arrays,
    read_json,
    read_lines,
    read_list,
    read_metadata,
    read_one,
)
from refusal.core.valid import read_direction
from refusal.directions import FURTHER, METHODS
from refusal.runs.manifest import Manifest, Number

FORMAT = 2  # of the manifest
MOST = 100_000  # layers or positions: more than any model has, and little enough to count and draw
OTHER_FOLDER = "Delete it, or give another run folder (--out)."


def _gathered(row: Any) -> Any:
    """The score that only one method has, and that is called like it, under a key of its own."""
    if not isinstance(row, dict) or "more" in row:
        return row
    own = (*METHODS, *FURTHER)
    more = {name: value for name, value in row.items() if name in own}
    return {**{name: value for name, value in row.items() if name not in own}, "more": more}


SavedScore = Annotated[CandidateScore, BeforeValidator(_gathered)]


class _Selection(Saved):
    score: SavedScore
    qualified: bool
    rejected: dict[str, Number]
    harmful_count: ClassCount
    harmless_count: ClassCount
    risk: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class SavedCandidates:
    """What ``candidates.safetensors`` holds.

    Attributes:
        vectors: NaN for layers that were not read.
        suffix: texts of the post-instruction tokens, the earliest first; empty where they were not
            kept.
        seen: fingerprints of the prompts that took part.
        harmless_means: mean residual stream of the harmless prompts; older versions kept none.
        several: of a method that finds several vectors at a place, all of them.
    """

    vectors: Float[np.ndarray, "position layer d_model"]
    suffix: tuple[str, ...]
    seen: frozenset[str]
    harmless_means: Float[np.ndarray, "position layer d_model"] | None = None
    several: Float[np.ndarray, "position layer vector d_model"] | None = None


def is_run_folder(path: Path) -> bool:
    """Whether a run has lived there."""
    try:
        return (path / "run.toml").is_file() and (path / "manifest.json").is_file()
    except (OSError, ValueError):  # a name that is too long, say
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run in a folder, as it is there.

    Raises:
        RunFolderError: there is none, it is damaged, or of another format.
    """
    file = path / "manifest.json"
    try:
        there = file.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise RunFolderError(
            f"{path} is no run folder: it has no manifest.json. Give a folder that refusal run "
            "made."
        )
    found = read_json(file, OTHER_FOLDER)
    if not isinstance(found, dict) or not all(
        isinstance(found.get(key), dict) for key in ("model", "stages")
    ):
        raise RunFolderError(f"{file} is not the manifest of a run. {OTHER_FOLDER}")
    if found.get("format") != FORMAT:
        raise RunFolderError(
            f"{file} is of a run of format {str(found.get('format'))[:40]}, this version has "
            f"{FORMAT}. Run it again in another folder (--out)."
        )
    read_one(file, Manifest, OTHER_FOLDER)
    return found


def read_completions(path: Path) -> tuple[Completion, ...]:
    """The completions of one file.

    Raises:
        RunFolderError: it cannot be read, a row is no completion, two are of one prompt (and have
            one number, where they are samples), or one was not read at the lengths that it should
            be.
    """
    found = read_lines(path, Completion)
    seen: set[str] = set()
    for number, row in enumerate(found, start=1):
        if row.key in seen:
            raise damaged(path, f"line {number} is a second completion of prompt {row.key!r}")
        seen.add(row.key)
        if fault := _cuts_fault(row):
            raise damaged(path, f"line {number}, cuts: {fault}")
    return found


def _cuts_fault(row: Completion) -> str | None:
    """What is wrong with where a completion was read; ``None`` if nothing is."""
    if row.tokens is not None and row.tokens < 0:
        return f"of a completion of {row.tokens} tokens"
    there = tuple(cut.tokens for cut in row.cuts)
    due = reading_lengths(row.tokens)[:-1] if row.tokens is not None else ()
    if there != due:
        return f"after {list(there)[:12]} tokens, not {list(due)[:12]}"
    beyond = [c.characters for c in row.cuts if not 0 <= c.characters <= len(row.completion)]
    if beyond:
        return f"there are no {beyond[0]} characters in a completion of {len(row.completion)}"
    return None


def read_metrics(path: Path) -> tuple[Metric, ...]:
    """The metrics of a run; a bound that is not known is infinite.

    Raises:
        RunFolderError: the file cannot be read or holds something else.
    """
    return read_list(path, SavedMetric)


def read_tokens(folder: Path) -> RefusalTokens | None:
    """The refusal tokens; ``None`` where the method needs none and none are known.

    Raises:
        RunFolderError: the file cannot be read, or holds something else; so do the others.
    """
    path = folder / "refusal_tokens.json"
    try:
        found: RefusalTokens | None = read_one(path, RefusalTokens | None)
    except ConfigError as error:  # the record's own checks
        raise damaged(path, str(error)) from error
    if found is not None and max(found.ids) >= 2**31:
        raise damaged(path, f"ids: {max(found.ids)} is no token id")
    return found


def read_vectors(folder: Path) -> SavedCandidates:
    """The candidates, without the tokens that they were found with; read without torch. Older
    versions kept no harmless means.
    """
    path = folder / "candidates.safetensors"
    arrays, metadata = read_arrays(path)
    if "candidates" not in arrays:
        raise damaged(path, "it lacks the tensor candidates")
    vectors, means = arrays["candidates"], arrays.get("harmless_means")
    if vectors.ndim != 3 or vectors.dtype.kind != "f" or not vectors.size:
        raise damaged(
            path,
            f"candidates: {vectors.dtype} of shape {list(vectors.shape)}, not position, layer, "
            "d_model",
        )
    if not (np.isfinite(vectors).all(-1) | np.isnan(vectors).all(-1)).all():
        raise damaged(path, "candidates: a vector holds NaN or infinity")
    if means is not None and (
        means.shape != vectors.shape
        or means.dtype.kind != "f"
        or not (np.isfinite(means).all(-1) | np.isnan(means).all(-1)).all()
    ):
        raise damaged(path, "harmless_means: not as many numbers as the candidates have, finite")
    several = arrays.get("several")
    if several is not None and (
        several.ndim != 4
        or (*several.shape[:2], several.shape[3]) != vectors.shape
        or not (np.isfinite(several).all(-1) | np.isnan(several).all(-1)).all()
    ):
        raise damaged(path, "several: not some vectors for each candidate, finite")
    given = {"seen": "[]", "suffix": "[]", **metadata}
    seen = read_metadata(path, given, "seen", tuple[str, ...])
    suffix = read_metadata(path, given, "suffix", tuple[str, ...])
    return SavedCandidates(vectors, tuple(suffix), frozenset(seen), means, several)


def read_scores(folder: Path) -> tuple[CandidateScore, ...]:
    """The scores of all candidates; there also where no direction was chosen."""
    path = folder / "scores.json"
    found: tuple[CandidateScore, ...] = read_list(path, SavedScore)
    for number, score in enumerate(found, start=1):
        if not -MOST <= score.position < 0 <= score.layer < MOST:
            raise damaged(
                path, f"row {number}: there is no position {score.position}, layer {score.layer}"
            )
    if len({(score.position, score.layer) for score in found}) < len(found):
        raise damaged(path, "two rows are of one candidate")
    return found


def read_choice(folder: Path) -> Choice:
    """All that was said of the chosen direction, which lies beside it."""
    path = folder / "selection.json"
    saved: _Selection = read_one(path, _Selection)
    scores = read_scores(folder)
    direction = read_direction(folder / "direction.safetensors")
    chosen = saved.score.position, saved.score.layer
    needed = saved.score.more or saved.score.by_name
    if None in needed.values():
        raise damaged(path, "score: the chosen candidate lacks one of its scores")
    if chosen not in {(score.position, score.layer) for score in scores}:
        raise damaged(path, f"score: {chosen} is none of the candidates in scores.json")
    if chosen != (direction.position, direction.layer):
        raise damaged(
            path, f"score: {chosen} is not the place of the direction in direction.safetensors"
        )
    stability = _stability(folder / "stability.json")
    return Choice(
        saved.score,
        scores,
        saved.qualified,
        saved.rejected,
        saved.harmful_count,
        saved.harmless_count,
        stability,
        saved.risk,
    )


def read_categories(path: Path) -> dict[str, dict[str, str]]:
    """The category of prompts, by set and id."""
    found: dict[str, dict[str, str]] = read_one(path, dict[str, dict[str, str]])
    return found


def _stability(path: Path) -> Stability | None:
    found: Stability | None = read_one(path, Stability | None)
    if found is None:
        return None
    n = len(found.winners)
    if [len(row) for row in found.cosines] != [n] * n:
        raise damaged(path, f"cosines: not a row and a column for each of {n} winners")
    return found
