"""The records of a run, read back from its folder: no model needed."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from refusal.errors import RunFolderError
from refusal.records import Candidates, CandidateScore, ClassCount, Direction, RefusalTokens, Selection, Stability, Win
from refusal.run_folder import read_json


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
