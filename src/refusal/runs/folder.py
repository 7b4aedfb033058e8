"""The folder of a run: its manifest, and which finished stages may be reused.

``manifest.json`` says for every finished stage which inputs it had (as one hash) and what it wrote
(a hash per file). It is written again after every stage, so that an interrupted run keeps what is
finished.
"""

import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refusal.config.run_config import RunConfig
from refusal.config.tables import in_tables
from refusal.core import parallel
from refusal.core.errors import RunFolderError
from refusal.core.records import Prompt, PromptSplits
from refusal.core.secrecy import shown_arguments
from refusal.core.storage import file_sha256, remove, write_blocks, write_json, write_toml
from refusal.core.work import Work, extent, side_by_side
from refusal.model.batch_size import free_memory
from refusal.model.chat_model import ChatModel
from refusal.model.memory import Memory, memory_of, room_of
from refusal.model.sizes import active_parameters
from refusal.runs.files import FORMAT, read_manifest
from refusal.runs.identity import digest, model_identity, program
from refusal.runs.machine import devices, hardware, peak_memory, versions
from refusal.weights.same_weights import files_hash_of

# Files that would be replaced; without a manifest beside them nobody knows whose they are.
RESULTS = (
    "direction.safetensors",
    "candidates.safetensors",
    "scores.json",
    "metrics.json",
    "completions",
    "report.html",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A piece of work whose result is kept.

    Attributes:
        name: unique in a run; its first word is the stage's.
        version: of the program's results at this stage.
        inputs: all that the result depends on, beside model and program; JSON.
        outputs: files that it writes.
        costs: what it reads and writes; empty where no model is run.
    """

    name: str
    version: str
    inputs: Mapping[str, Any]
    outputs: Sequence[Path]
    costs: Sequence[Work] = ()


# Does several steps, and says of each when its files are written.
Together = Callable[[Sequence[Step], Callable[[Step], None]], None]


class RunFolder:
    """A run folder and its manifest.

    Attributes:
        manifest: what ``manifest.json`` holds; empty in a new folder before ``begin``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {}
        self.model: ChatModel | None = None
        self.earlier_options: bytes | None = None
        self.price: float | None = None
        self.active_parameters, self.devices = 0, 1

    def completions(self, set_name: str, condition: str) -> Path:
        """File of the completions of a set under a condition."""
        return self.path / "completions" / f"{set_name}.{condition}.jsonl"

    def check(self) -> None:
        """Make sure that a run can live here, and read what an earlier one left.

        Raises:
            RunFolderError: a file, not writable, another format, or a damaged manifest.
        """
        nearest = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not nearest.is_dir():
            raise RunFolderError(f"{nearest} is a file. Give a folder with --out.")
        if not os.access(nearest, os.W_OK):
            raise RunFolderError(f"{nearest} is not writable. Give another --out.")
        if (self.path / "manifest.json").exists():
            self.manifest = read_manifest(self.path)
        elif foreign := [name for name in RESULTS if (self.path / name).exists()]:
            raise RunFolderError(
                f"{self.path} holds {foreign[0]} and no manifest of a run: it would be "
                "overwritten. Give another --out, or delete it."
            )

    def begin(
        self, config: RunConfig, model: ChatModel, prompts: PromptSplits, loaded: bool = False
    ) -> None:
        """Claim the folder for this model; write the config and what is known so far.

        Args:
            loaded: the model was loaded for this run by the config's name, and not changed since.
        """
        self.model, self.price = model, config.price_per_device_hour
        self.active_parameters, self.devices = (
            active_parameters(model.hf),
            parallel.processes() * devices(model),
        )
        parallel.wait()  # until all have read what was here
        identity = model_identity(model)
        parallel.only_writer(lambda: self._check_model(identity))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be made ({error.strerror}). Give another --out."
            ) from error
        pools = {}
        for split in ("train", "val", "test"):
            for label in ("harmful", "harmless"):
                pool = getattr(getattr(prompts, split), label)
                pools[f"{label}_{split}"] = prompts_hash(pool)
        self.manifest = {
            "format": FORMAT,
            "model": identity,
            "files_hash": self._files_hash(config, identity, loaded),
            "date": str(model.chat.day),
            "thinking": model.chat.thinking.described,
            "prompts": {"name": prompts.name, "counts": prompts.counts, "sha256": pools},
            "seed": config.seed,
            "fitted": self.manifest.get("fitted"),
            "versions": versions(),
            "hardware": hardware(model),
            "command": shown_arguments(sys.argv[1:])
            if Path(sys.argv[0]).stem in ("refusal", "__main__")
            else None,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "stages": self.manifest.get("stages", {}),
            "judges": self.manifest.get("judges", {}),
        }
        options = self.path / "run.toml"
        self.earlier_options = options.read_bytes() if options.is_file() else None
        write_toml(options, in_tables(config.model_dump()))
        self.save()

    def _files_hash(self, config: RunConfig, identity: dict[str, Any], loaded: bool) -> str | None:
        """Of the checkpoint on the disk; known where the model was loaded from it here, or these
        weights before.
        """
        if loaded and parallel.is_writer():
            return files_hash_of(config.model, config.revision)
        earlier: dict[str, Any] = self.manifest.get("model", {})
        same = all(earlier.get(key) == identity[key] for key in ("weight_hash", "dtype"))
        return self.manifest.get("files_hash") if same else None

    def take_back_options(self) -> None:
        """Put back the ``run.toml`` that ``begin`` replaced: what was added could not be used."""
        if self.earlier_options is not None:
            write_blocks(self.path / "run.toml", [self.earlier_options])

    def _check_model(self, ours: dict[str, Any]) -> None:
        """Refuse a folder of other weights; the same model in another dtype may replace what is
        here.
        """
        theirs = self.manifest.get("model")
        if theirs is None:
            return
        if theirs.get("weight_hash") == ours["weight_hash"]:
            if changed := sorted(
                key for key in ours.keys() - {"name", "revision"} if theirs.get(key) != ours[key]
            ):
                log.warning(
                    "The model's %s differ from those of the run in %s: its stages are done again.",
                    ", ".join(key.removesuffix("_hash").replace("_", " ") for key in changed),
                    self.path,
                )
            return
        if (
            all(theirs.get(key) == ours[key] for key in ("name", "revision"))
            and theirs.get("dtype") != ours["dtype"]
        ):
            return
        raise RunFolderError(
            f"{self.path} holds a run of {theirs.get('name')} (weights "
            f"{str(theirs.get('weight_hash'))[:8]}), not of {ours['name']} (weights "
            f"{ours['weight_hash'][:8]}). Give another --out."
        )

    def do(self, step: Step, work: Callable[[], None]) -> None:
        """Do a step, unless it was done with these inputs and its outputs are there, unchanged."""

        def alone(missing: Sequence[Step], finished: Callable[[Step], None]) -> None:
            work()
            finished(step)

        self.do_together([step], alone)

    def do_together(self, steps: Sequence[Step], work: Together) -> None:
        """Do in one piece of work those of some steps that are not done yet.

        Each is kept as soon as ``work`` says that its files are written, so that an interruption
        costs only those under way. What all took is shared out by what each was to write.
        """
        assert self.model is not None
        keys = {step.name: self._key(step) for step in steps}
        missing = [step for step in steps if not self._is_done(step, keys[step.name])]
        if not missing:
            return
        # no rates beside a direction or completions that are not theirs
        if any(step.name != "evaluate" for step in missing):
            remove(self.path / "metrics.json")
            remove(self.path / "report.html")
        need = self._need(missing)
        tokens, start = self.model.forward_tokens, time.perf_counter()
        weights: dict[str, float] = {}

        def finished(step: Step) -> None:
            assert self.model is not None
            parallel.wait()
            read = parallel.total(self.model.forward_tokens - tokens)
            seconds, stages = time.perf_counter() - start, self.manifest["stages"]
            direction = step.inputs.get("direction")  # kept, so that one can see whose files are
            stages[step.name] = {
                "inputs": keys[step.name],
                "program": program(),
                "files": {path.name: file_sha256(path) for path in step.outputs},
                **self._spent(read, seconds),
                "needed_memory_bytes": None if need is None else need.total,
                "peak_memory_bytes": peak_memory(self.model),
                **({"direction": direction} if direction else {}),
            }
            weights[step.name] = extent(step.costs)
            for name, weight in weights.items():
                share = weight / sum(weights.values())
                stages[name].update(self._spent(round(read * share), seconds * share))
            self._in_order([one.name for one in steps])
            self.save()

        work(missing, finished)

    def _key(self, step: Step) -> str:
        """Hash of all that a step's result depends on, but what the model is called."""
        identity = {**self.manifest["model"], "name": None, "revision": None}
        return digest([FORMAT, step.name, step.version, identity, step.inputs])

    def _is_done(self, step: Step, key: str) -> bool:
        """Whether a step was done with these inputs and its outputs are there, unchanged."""
        done = self.manifest["stages"].get(step.name)

        def unchanged() -> bool:
            same = isinstance(done, dict) and done.get("inputs") == key
            return same and self._untouched(step.name, done, step.outputs)

        if not parallel.decided(unchanged):
            return False
        log.info("%s: reused from %s", step.name, self.path)
        return True

    def _in_order(self, names: Sequence[str]) -> None:
        """Let some steps stand in this order in the manifest, whichever of them was done first."""
        stages = self.manifest["stages"]
        ordered = iter([name for name in names if name in stages])
        order = [next(ordered) if name in names else name for name in stages]
        self.manifest["stages"] = {name: stages[name] for name in order}

    def _need(self, steps: Sequence[Step]) -> Memory | None:
        """What steps will hold in memory, said before they start; more than is free: a warning."""
        assert self.model is not None
        name, costs = steps[0].name, list(steps[0].costs)
        if len(steps) > 1:
            name = f"{name} and {len(steps) - 1} more"
            costs = side_by_side([cost for step in steps for cost in step.costs])
        need = memory_of(costs, room_of(self.model))
        if need is None:
            return None
        free = free_memory(self.model.device)
        parts = (
            f"{part} {_gb(getattr(need, part))}" for part in ("activations", "cache", "logits")
        )
        text = (
            f"{name}: needs weights {_gb(need.weights)} (loaded), {', '.join(parts)}; "
            f"{_gb(free)} are free"
        )
        if need.working > free:
            log.warning("%s. Batches are halved when memory runs out.", text)
        else:
            log.info("%s", text)
        return need

    def _spent(self, tokens: int, seconds: float) -> dict[str, float | int]:
        """What a stage took. Operations: two for each weight that a token meets; the head is left
        out.
        """
        device_seconds = seconds * self.devices
        return {
            "seconds": round(seconds, 2),
            "forward_tokens": tokens,
            "flops": 2 * self.active_parameters * tokens,
            "device_seconds": round(device_seconds, 2),
            **(
                {} if self.price is None else {"cost": round(self.price * device_seconds / 3600, 6)}
            ),
        }

    def save(self) -> None:
        """Write the manifest as it is now."""
        write_json(self.path / "manifest.json", self.manifest)

    def _untouched(self, name: str, done: dict[str, Any], outputs: Sequence[Path]) -> bool:
        """Whether the files of a finished stage are still what it wrote; one that was changed is
        worth a warning.
        """
        for path in outputs:
            if not path.is_file():
                log.info("%s: %s is missing, made again", name, path)
                return False
            if file_sha256(path) != done.get("files", {}).get(path.name):
                log.warning(
                    "%s was changed since the stage %s wrote it: the stage is done again.",
                    path,
                    name,
                )
                return False
        return True


def _gb(n: int) -> str:
    return f"{n / 1e9:.2f} GB"


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """Sha256 over the turns before each prompt, its id, text and label, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.before or ''}{prompt.id}\0{prompt.text}\0{prompt.label}\n".encode())
    return digest.hexdigest()
