"""A whole run in a folder: stages with recorded inputs, so that finished ones are reused and nothing else is.

    prompts -> tokens -> extract -> select -> generate (one stage per condition) -> evaluate

A stage is reused if and only if the hash of its inputs (options, model, prompts, files of earlier stages) is the one it
was made with and its files are there. Only this module writes into the run folder.
"""

import hashlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from refusal.activations import collect
from refusal.candidates import difference_in_means
from refusal.config import RunConfig
from refusal.errors import NoCandidateError, RunFolderError
from refusal.evaluate import CONDITIONS, complete_under, measure
from refusal.model import ChatModel, load
from refusal.prompts import load_prompts
from refusal.records import (
    Candidates,
    CandidateScore,
    ClassCount,
    Completion,
    Direction,
    Metric,
    Prompt,
    PromptSplits,
    RefusalTokens,
    Selection,
    to_json,
)
from refusal.refusal_tokens import tokens_for
from refusal.selection import explain, select
from refusal.storage import file_sha256, write_json, write_jsonl, write_tensors, write_toml

log = logging.getLogger(__name__)

FORMAT = 1
STAGES = ("extract", "select", "generate", "evaluate")


@dataclass(frozen=True)
class RunResult:
    """What a run has so far; stages that were not asked for are ``None`` or empty."""

    folder: Path
    config: RunConfig
    tokens: RefusalTokens
    candidates: Candidates
    selection: Selection | None = None
    metrics: tuple[Metric, ...] = ()


def run(config: RunConfig, out: str | Path, *, until: str = "evaluate", model: ChatModel | None = None) -> RunResult:
    """Run the stages up to ``until`` (one of ``STAGES``) in the folder ``out``, reusing what is finished there.

    Args:
        model: an already loaded model; default: what the config names.

    Raises:
        RunFolderError: the folder holds a run of another model or format, or cannot be used.
        NoCandidateError: no candidate qualifies and ``config.strict``; the scores are in the folder all the same.
        refusal.Error: whatever a stage raises.
    """
    folder = _Folder(Path(out))
    prompts = load_prompts(
        config.prompts, seed=config.seed, dedup=config.dedup, data_dir=config.data_dir, column=config.column
    )
    model = model or _load(config)
    folder.begin(config, model, prompts)

    tokens = _tokens(folder, config, model, prompts)
    candidates = _extract(folder, config, model, prompts, tokens)
    result = RunResult(folder.path, config, tokens, candidates)
    if until == "extract":
        return result
    selection = _select(folder, config, model, prompts, candidates)
    result = replace(result, selection=selection)
    if until == "select":
        return result
    _generate(folder, config, model, prompts, selection.direction)
    if until == "generate":
        return result
    return replace(result, metrics=_evaluate(folder))


def _load(config: RunConfig) -> ChatModel:
    return load(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        system=config.system,
        blocks=config.blocks,
        writers=config.writers or None,
        batch_size=config.batch_size,
    )


def _tokens(folder: "_Folder", config: RunConfig, model: ChatModel, prompts: PromptSplits) -> RefusalTokens:
    path = folder.path / "refusal_tokens.json"
    inputs = {"train": _prompts_hash([*prompts.train.harmful, *prompts.train.harmless]), "given": config.refusal_tokens}

    def work() -> None:
        write_json(path, to_json(tokens_for(model, prompts.train, config.refusal_tokens)))

    folder.stage("tokens", inputs, [path], work)
    saved = _read_json(path)
    lists = {key: tuple(saved[key]) if saved[key] is not None else None for key in ("ids", "texts", "probabilities")}
    return RefusalTokens(**{**saved, **lists})


def _extract(
    folder: "_Folder", config: RunConfig, model: ChatModel, prompts: PromptSplits, tokens: RefusalTokens
) -> Candidates:
    path = folder.path / "candidates.safetensors"
    inputs = {
        "train": _prompts_hash([*prompts.train.harmful, *prompts.train.harmless]),
        "tokens": tokens.ids,
        "n": config.n_train,
        "filter": config.filter,
    }

    def work() -> None:
        activations = collect(
            model, prompts.train, n=config.n_train, tokens=tokens, filter=config.filter, seed=config.seed
        )
        counts = {"harmful": asdict(activations.harmful_count), "harmless": asdict(activations.harmless_count)}
        metadata = {"counts": json.dumps(counts), "model": model.name, "suffix": json.dumps(model.chat.suffix_tokens)}
        write_tensors(path, {"candidates": difference_in_means(activations).vectors}, metadata)

    folder.stage("extract", inputs, [path], work)
    with safe_open(str(path), framework="pt") as file:
        return Candidates(file.get_tensor("candidates"), tokens, model.name, config.seed)


def _select(
    folder: "_Folder", config: RunConfig, model: ChatModel, prompts: PromptSplits, candidates: Candidates
) -> Selection:
    scores, direction, summary = (
        folder.path / name for name in ("scores.json", "direction.safetensors", "selection.json")
    )
    inputs = {
        "candidates": file_sha256(folder.path / "candidates.safetensors"),
        "tokens": candidates.tokens.ids,
        "val": _prompts_hash([*prompts.val.harmful, *prompts.val.harmless]),
        "n": config.n_val,
        "filter": config.filter,
        "rule": asdict(config.rule),
        "layer_step": config.layer_step,
    }

    def work() -> None:
        selection = select(
            model,
            candidates,
            prompts.val,
            n=config.n_val,
            filter=config.filter,
            rule=config.rule,
            layer_step=config.layer_step,
        )
        write_json(scores, to_json(selection.scores))
        selection.direction.save(direction)
        kept = ("score", "qualified", "rejected", "harmful_count", "harmless_count")
        write_json(summary, {name: _plain(getattr(selection, name)) for name in kept})

    folder.stage("select", inputs, [scores, direction, summary], work)
    saved = _read_json(summary)
    selection = Selection(
        direction=Direction.load(direction),
        score=CandidateScore(**saved["score"]),
        scores=tuple(CandidateScore(**item) for item in _read_json(scores)),
        qualified=saved["qualified"],
        rejected=saved["rejected"],
        harmful_count=ClassCount(**saved["harmful_count"]),
        harmless_count=ClassCount(**saved["harmless_count"]),
    )
    if config.strict and not selection.qualified:
        raise NoCandidateError(
            f"{explain(selection.scores)} Run without --strict to go on with the closest one, marked unqualified."
        )
    return selection


def _generate(
    folder: "_Folder", config: RunConfig, model: ChatModel, prompts: PromptSplits, direction: Direction
) -> None:
    direction_hash = file_sha256(folder.path / "direction.safetensors")
    for set, condition in CONDITIONS:
        pool = (prompts.test.harmful if set == "harmful" else prompts.test.harmless)[: config.n_test]
        path = folder.completions(set, condition)
        inputs = {
            "prompts": _prompts_hash(pool),
            "max_new_tokens": config.max_new_tokens,
            "direction": None if condition == "baseline" else direction_hash,
        }

        def work(pool: Sequence[Prompt] = pool, condition: str = condition, path: Path = path) -> None:
            done = complete_under(model, direction, pool, condition, config.max_new_tokens)
            write_jsonl(path, to_json(done))

        folder.stage(f"generate {set}.{condition}", inputs, [path], work)


def _evaluate(folder: "_Folder") -> tuple[Metric, ...]:
    path = folder.path / "metrics.json"
    files = {f"{set}.{condition}": folder.completions(set, condition) for set, condition in CONDITIONS}

    def work() -> None:
        metrics: list[Metric] = []
        for set, condition in CONDITIONS:
            lines = files[f"{set}.{condition}"].read_text(encoding="utf-8").splitlines()
            metrics += measure([Completion(**json.loads(line)) for line in lines], set, condition)
        write_json(path, to_json(metrics))

    folder.stage("evaluate", {name: file_sha256(file) for name, file in files.items()}, [path], work)
    return tuple(Metric(**item) for item in _read_json(path))


class _Folder:
    """A run folder and its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {}
        self.model: ChatModel | None = None

    def completions(self, set: str, condition: str) -> Path:
        return self.path / "completions" / f"{set}.{condition}.jsonl"

    def begin(self, config: RunConfig, model: ChatModel, prompts: PromptSplits) -> None:
        """Open or create the folder for this model, and write the config and what is known so far."""
        self.model = model
        identity = {
            "name": model.name,
            "revision": model.revision or getattr(model.hf.config, "_commit_hash", None),
            "weight_hash": model.weight_hash(),
            "dtype": str(model.hf.dtype).removeprefix("torch."),
            "template_hash": hashlib.sha256(str(model.tokenizer.chat_template).encode()).hexdigest(),
            "system": model.chat.system,
        }
        stages = self._open(identity)
        pools = {
            f"{label}_{split}": _prompts_hash(getattr(getattr(prompts, split), label))
            for split in ("train", "val", "test")
            for label in ("harmful", "harmless")
        }
        self.manifest = {
            "format": FORMAT,
            "model": identity,
            "prompts": {"name": prompts.name, "counts": prompts.counts, "sha256": pools},
            "seed": config.seed,
            "versions": _versions(),
            "hardware": _hardware(model),
            "command": sys.argv[1:] if Path(sys.argv[0]).stem in ("refusal", "__main__") else None,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "stages": stages,
        }
        write_toml(self.path / "run.toml", config.model_dump(exclude_none=True))
        write_json(self.path / "manifest.json", self.manifest)

    def _open(self, identity: dict[str, Any]) -> dict[str, Any]:
        """The finished stages of an earlier run of the same model here; refuses anything else."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file. Give a folder with --out.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be made ({error.strerror}). Give another --out.") from error
        if not os.access(self.path, os.W_OK):
            raise RunFolderError(f"{self.path} is not writable. Give another --out.")
        file = self.path / "manifest.json"
        if not file.exists():
            return {}
        old = _read_json(file)
        if not isinstance(old, dict) or old.get("format") != FORMAT:
            found = old.get("format") if isinstance(old, dict) else "none"
            raise RunFolderError(
                f"{self.path} holds a run of format {found}, this version writes {FORMAT}. Give another --out."
            )
        theirs = old["model"]
        if (theirs["name"], theirs["weight_hash"]) != (identity["name"], identity["weight_hash"]):
            raise RunFolderError(
                f"{self.path} holds a run of {theirs['name']} (weights {theirs['weight_hash'][:8]}), not of "
                f"{identity['name']} (weights {identity['weight_hash'][:8]}). Give another --out."
            )
        stages: dict[str, Any] = old["stages"]
        return stages

    def stage(self, name: str, inputs: dict[str, Any], outputs: Sequence[Path], work: Callable[[], None]) -> None:
        """Do ``work`` unless it was done with the same inputs and its outputs are there."""
        assert self.model is not None
        identity = {**self.manifest["model"], "name": None}  # what it is called does not change what it computes
        key = hashlib.sha256(json.dumps([FORMAT, name, identity, inputs], sort_keys=True).encode()).hexdigest()
        done = self.manifest["stages"].get(name)
        if done is not None and done["inputs"] == key and all(path.is_file() for path in outputs):
            log.info("%s: reused from %s", name, self.path)
            return
        tokens, start = self.model.forward_tokens, time.perf_counter()
        work()
        self.manifest["stages"][name] = {
            "inputs": key,
            "seconds": round(time.perf_counter() - start, 2),
            "forward_tokens": self.model.forward_tokens - tokens,
            "peak_memory_bytes": _peak_memory(),
        }
        write_json(self.path / "manifest.json", self.manifest)


def _prompts_hash(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.id}\0{prompt.text}\0{prompt.label}\n".encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return to_json(value) if hasattr(value, "__dataclass_fields__") else value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}). Delete it, or give another --out.") from error


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("refusal", "torch", "transformers", "tokenizers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _hardware(model: ChatModel) -> dict[str, Any]:
    device = model.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": str(device),
        "gpu": gpu,
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _peak_memory() -> int | None:
    """Largest resident memory of this process so far; not known on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
