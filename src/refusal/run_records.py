"""The files of a run, read back from its folder as records: no model needed."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from refusal.errors import RunFolderError
from refusal.records import (
    Candidates,
    CandidateScore,
    ClassCount,
    Completion,
    Direction,
    Metric,
    RefusalTokens,
    Selection,
    Stability,
    Win,
)

FORMAT = 2  # of the manifest
T = TypeVar("T")


def is_run_folder(path: Path) -> bool:
    """Whether a run has lived there."""
    return (path / "run.toml").is_file() and (path / "manifest.json").is_file()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run in a folder.

    Raises:
        RunFolderError: there is none, it is damaged, or of another format.
    """
    if not (path / "manifest.json").is_file():
        raise RunFolderError(f"{path} is no run folder: it has no manifest.json. Give a folder that refusal run made.")
    found = read_json(path / "manifest.json")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("model", "stages")):
        raise RunFolderError(
            f"{path / 'manifest.json'} is not the manifest of a run. Delete it, or give another run folder (--out)."
        )
    if found.get("format") != FORMAT:
        raise RunFolderError(
            f"{path} holds a run of format {found.get('format')}, this version has {FORMAT}. "
            "Run it again in another folder (--out)."
        )
    return found


def read_json(path: Path) -> Any:
    """A file of the run folder.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}). Delete it, or give another --out.") from error


def read_rows(path: Path, make: Callable[[Any], T]) -> Iterator[T]:
    """What ``make`` makes of every row of a file of JSON lines.

    Raises:
        RunFolderError: the file cannot be read, or ``make`` cannot use a row.
    """
    lines = 0
    try:
        with path.open(encoding="utf-8") as file:  # str.splitlines would split completions
            for line in file:
                lines += 1
                yield make(json.loads(line))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(
            f"{path}, line {lines}, cannot be read ({error}). Delete the file; the same command makes it again."
        ) from error


def read_completions(path: Path) -> tuple[Completion, ...]:
    """The completions of one file.

    Raises:
        RunFolderError: it cannot be read, or a row is no completion.
    """
    return tuple(read_rows(path, lambda row: Completion(**row)))


def read_metrics(path: Path) -> tuple[Metric, ...]:
    """The metrics of a run; a bound that is not known is infinite.

    Raises:
        RunFolderError: the file cannot be read or holds something else.
    """
    unknown: dict[str, Any] = {"value": math.nan, "low": -math.inf, "high": math.inf}
    try:
        return tuple(
            Metric(**{**row, **{key: unknown[key] for key in unknown if row[key] is None}}) for row in read_json(path)
        )
    except (TypeError, KeyError) as error:
        raise RunFolderError(f"{path} holds no metrics ({error}). Run the same command again.") from error


def read_tokens(folder: Path) -> RefusalTokens:
    """The refusal tokens.

    Raises:
        RunFolderError: the file cannot be read, or holds something else; so do the others.
    """
    saved = read_json(folder / "refusal_tokens.json")
    try:
        lists = {
            key: tuple(saved[key]) if saved[key] is not None else None for key in ("ids", "texts", "probabilities")
        }
        return RefusalTokens(**{**saved, **lists})
    except (KeyError, TypeError) as error:
        raise _damaged(folder / "refusal_tokens.json", error) from error


def read_candidates(folder: Path, tokens: RefusalTokens, model: str, seed: int | None) -> Candidates:
    """The candidates, with the fingerprints of the prompts that took part."""
    path = folder / "candidates.safetensors"
    try:
        with safe_open(str(path), framework="pt") as file:
            seen = frozenset(json.loads((file.metadata() or {}).get("seen", "[]")))
            return Candidates(file.get_tensor("candidates"), tokens, model, seed, seen)
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error


def read_suffix(folder: Path) -> tuple[str, ...]:
    """The texts of the post-instruction tokens, the earliest first; empty where they were not kept."""
    path = folder / "candidates.safetensors"
    try:
        with safe_open(str(path), framework="pt") as file:
            return tuple(json.loads((file.metadata() or {}).get("suffix", "[]")))
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error


def read_scores(folder: Path) -> tuple[CandidateScore, ...]:
    """The scores of all candidates; there also where no direction was chosen."""
    try:
        return tuple(CandidateScore(**item) for item in read_json(folder / "scores.json"))
    except TypeError as error:
        raise _damaged(folder / "scores.json", error) from error


def read_selection(folder: Path) -> Selection:
    """The chosen direction and all that was said of it."""
    saved = read_json(folder / "selection.json")
    try:
        return Selection(
            direction=Direction.load(folder / "direction.safetensors"),
            score=CandidateScore(**saved["score"]),
            scores=read_scores(folder),
            qualified=saved["qualified"],
            rejected=saved["rejected"],
            harmful_count=ClassCount(**saved["harmful_count"]),
            harmless_count=ClassCount(**saved["harmless_count"]),
            stability=_stability(read_json(folder / "stability.json")),
        )
    except (KeyError, TypeError) as error:
        raise _damaged(folder / "selection.json", error) from error


def _stability(saved: dict[str, Any] | None) -> Stability | None:
    if saved is None:
        return None
    winners = tuple(Win(**win) for win in saved["winners"])
    return Stability(**{**saved, "winners": winners, "cosines": tuple(map(tuple, saved["cosines"]))})


def _damaged(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{path} cannot be understood ({error}). Delete it; the same command makes it again.")
