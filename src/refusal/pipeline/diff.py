"""A base and its candidates in a folder: what every one of them does, measured one after the other.

OUT/base/               the base: completions, what it predicts, its stream; a manifest as a run's
OUT/candidates/NAME/    the same of each candidate
OUT/run/                the run that finds the base's direction, where none is given
OUT/diff.json           all numbers

No two models are ever in memory at once.
"""

import gc
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from refusal.config.diff import DiffConfig
from refusal.config.run_config import RunConfig, model_options
from refusal.core import parallel
from refusal.core.day import day_of
from refusal.core.direction import Direction
from refusal.core.errors import ConfigError, DirectionError
from refusal.core.lock import locked
from refusal.core.progress import NOTE
from refusal.core.storage import remove
from refusal.core.valid import check_place, check_width
from refusal.evaluations.diff.behaviour import Ability, Completed
from refusal.evaluations.diff.divergence import CANDIDATE, Divergence
from refusal.evaluations.diff.result import Compared, Diffed, read_diff, write_diff
from refusal.evaluations.diff.side import (
    STREAM,
    Kept,
    Side,
    compare_makes,
    keep,
    notes_on,
)
from refusal.evaluations.diff.stream import Streamed, shares_left, stream_diff
from refusal.evaluations.diff.summary import (
    Sizes,
    base_metrics,
    candidate_metrics,
    sizes_asked,
    stream_metrics,
    summarise,
)
from refusal.model.adapter import base_of, check_mergeable, is_adapter
from refusal.model.chat_model import ChatModel
from refusal.model.load import load_adapted, resolve
from refusal.model.memory import room_of
from refusal.pipeline.asking import ask
from refusal.pipeline.costs.estimate import seconds_by_stage
from refusal.pipeline.costs.loaded import loaded_speed
from refusal.pipeline.run import load_for, plan_of, run
from refusal.runs.files import is_run_folder, read_manifest
from refusal.runs.folder import RunFolder
from refusal.runs.stage import Asked, Stage
from refusal.weights.checkpoint import INDEX, SINGLE, open_checkpoint
from refusal.weights.same_weights import check_loaded

STAGES: tuple[type[Stage], ...] = (Completed, Divergence, Streamed, Ability)
SIZES = (
    *("n_test", "n_val", "n_train", "max_new_tokens", "kl_prompts", "drift_tokens"),
    *("texts", "n_texts", "text_tokens", "over_refusal", "tasks", "n_items", "seed"),
    *("quantize", "candidate_quantize"),
)
RUN = frozenset(RunConfig.model_fields)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """One of them.

    Attributes:
        name: as it was given. label: as tables have it. folder: what its results are called.
    """

    name: str
    label: str
    folder: str

    @property
    def adapter(self) -> bool:
        """Whether it is an adapter for the base."""
        return is_adapter(self.name)


def diff(
    config: DiffConfig, candidates: Sequence[str], out: str | Path, *, run: str | Path | None = None
) -> Diffed:
    """Compare candidates with ``config.model``, their base, in the folder ``out``; what is there
    already is reused.

    Args:
        candidates: hub ids, folders, ``.gguf`` files, or folders of LoRA adapters for the base.
        run: folder of a run of the base with its direction; by default one is made in
            ``out/run``, up to the direction.

    Raises:
        ConfigError: no candidate, one that is given twice, or a launcher's several processes.
        ModelLoadError: a model is not there, not whole, or cannot be read.
        LeakageError: test prompts took part in finding the base's direction.
        DirectionError: the run has no direction, or is of another model.
        RunFolderError: a folder is of another model, in use, or cannot be used.
        refusal.Error: whatever a stage raises.
    """
    if parallel.launched():
        raise ConfigError("refusal diff runs in one process. Start it without a launcher.")
    named = name_candidates(candidates)
    _check(config, named)
    folder = Path(out)
    RunFolder(folder).check()
    with locked(folder):
        where = Path(run) if run is not None else folder / "run"
        asked = ask(config, folder)
        stages = [kind(asked) for kind in STAGES]  # what cannot be done ends here
        base = _base(asked, stages, where, given=run is not None, times=1 + len(named))
        found = [_candidate(one, base) for one in named]
        write_diff(folder, _diffed(base, found))
    return read_diff(folder)


def name_candidates(names: Sequence[str]) -> tuple[Candidate, ...]:
    """Candidates under labels that tell them apart, in their order.

    Raises:
        ConfigError: there are none, or one is given twice.
    """
    if not names:
        raise ConfigError("There is no candidate. Give one or more behind the base.")
    paths = [Path(name).expanduser() for name in names]
    places = []
    for name, path in zip(names, paths, strict=True):
        places.append(str(path.resolve()) if path.exists() else name)
    for name, place in zip(names, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"The candidate {name!r} is given twice. Give each once.")
    found = []
    for name, path, place in zip(names, paths, places, strict=True):
        parts = place.strip("/").split("/") if path.exists() else [place]
        others = [other.split("/") for other in places if other != place]
        n = 1
        while n < len(parts) and any(other[-n:] == parts[-n:] for other in others):
            n += 1
        label = "/".join(parts[-n:])
        slug = re.sub(r"[^\w.-]+", "-", label).strip("-.")[:60] or "candidate"
        digest = hashlib.sha256(place.encode()).hexdigest()[:8]
        found.append(Candidate(name, label, f"{slug}-{digest}"))
    return tuple(found)


def _check(config: DiffConfig, named: Sequence[Candidate]) -> None:
    """Look at all models before the first is loaded.

    Raises:
        ModelLoadError: one is not there, or its files are not whole.
        ConfigError: an adapter cannot be merged.
    """
    for name in (config.model, *(one.name for one in named if not one.adapter)):
        folder = Path(resolve(name))
        if any((folder / file).is_file() for file in (SINGLE, INDEX)):
            open_checkpoint(folder)
    for one in named:
        if one.adapter:
            check_mergeable(one.name, model_options(_config_of(config, one)))


def _config_of(config: DiffConfig, one: Candidate) -> DiffConfig:
    """How a candidate is loaded: as the base, but for its name, revision and quantisation."""
    quantize = config.candidate_quantize or config.quantize
    revision = config.revision if one.adapter else None
    changes = {"model": one.name, "revision": revision, "quantize": quantize}
    return config.model_copy(update=changes)


@dataclass(frozen=True)
class _Base:
    """The base when it has been measured.

    Attributes:
        asked: prompts and options. stages: what is done with every model. kept: what is known of
            this one. direction, run: whose it is.
    """

    asked: Asked
    stages: Sequence[Stage]
    kept: Kept
    direction: Direction
    run: Path


def _base(asked: Asked, stages: Sequence[Stage], where: Path, *, given: bool, times: int) -> _Base:
    """Load and measure the base, and let go of it."""
    config = asked.config
    if given and not (where / "direction.safetensors").is_file():
        raise DirectionError(
            f"{where} holds no run with a direction. Finish it: refusal select "
            f"{config.model} --out {where}; or leave --run out."
        )
    model = load_for(config)
    if given:
        check_loaded(where, read_manifest(where), model)
    else:
        own = {name: value for name, value in config.model_dump().items() if name in RUN}
        run(RunConfig(**own), where, until="select", model=model)
    first = read_manifest(where).get("date")
    if config.date is None and first is not None:  # what its templates wrote into prompts
        model.set_day(day_of(None, date.fromisoformat(first)))
    direction = Direction.load(where / "direction.safetensors")
    check_width(direction.vector, model.sites.d_model)
    positions = len(model.chat.suffix) + 1  # and the last token of the instruction
    check_place(direction.position, direction.layer, positions, model.sites.n_layers)
    side = _begin(asked, stages, asked.folder / "base", model, direction)
    _announce(side, times)
    _work(side, stages)
    found = _Base(asked, stages, keep(side), direction, where)
    del side, model
    _let_go()
    return found


def _candidate(one: Candidate, base: _Base) -> Compared:
    """Load and measure a candidate, let go of it, and compare."""
    config = base.asked.config
    assert isinstance(config, DiffConfig)
    own, notes = _config_of(config, one), list[str]()
    if one.adapter:
        model = load_adapted(config.model, one.name, **vars(model_options(own)))
        if (said := base_of(one.name)) is not None and said != config.model:
            notes.append(f"An adapter that names {said} as its base, merged into {config.model}.")
    else:
        model = load_for(own)
    model.set_day(base.kept.chat.day)
    model.token_budget.value = min(model.token_budget.value, base.kept.token_budget)
    model.batch_size.value = min(model.batch_size.value, base.kept.batch_size)
    missing = compare_makes(base.kept, model)
    asked = replace(base.asked, config=own)
    path = base.asked.folder / "candidates" / one.folder
    _forget_others(path, model)
    side = _begin(asked, base.stages, path, model, base.direction)
    side.base, side.missing = base.kept, missing
    notes += notes_on(base.kept, side.folder.manifest["model"])
    _work(side, base.stages)
    del side, model
    _let_go()
    return _compared(one, path, base, missing, notes)


def _forget_others(path: Path, model: ChatModel) -> None:
    """Delete what was measured of other weights that were once called like this candidate."""
    folder = RunFolder(path)
    folder.check()
    earlier = folder.manifest.get("model", {}).get("weight_hash")
    if earlier is not None and earlier != model.weight_hash():
        log.log(NOTE, "%s has other weights than before: it is measured anew.", model.name)
        remove(path)


def _compared(
    one: Candidate, folder: Path, base: _Base, missing: dict[str, str], notes: Sequence[str]
) -> Compared:
    sizes, where = sizes_of(base.asked), base.kept.folder
    stream, metrics = None, [*candidate_metrics(where, folder, sizes, missing)]
    if STREAM not in missing:
        stream = stream_diff(where, folder, base.direction, base.asked.config.n_val)
        metrics += stream_metrics(stream, shares_left(where, folder, base.direction))
    labelled = [replace(m, condition=one.label) for m in metrics if m.condition == CANDIDATE]
    summary = tuple(summarise(labelled, sizes))
    about = (str(folder), summary, tuple(labelled), stream)
    return Compared(one.label, one.name, *about, missing, tuple(notes))


def sizes_of(asked: Asked) -> Sizes:
    """What is measured of every side."""
    return sizes_asked(asked.config, tuple(asked.measured))


def _begin(
    asked: Asked, stages: Sequence[Stage], path: Path, model: ChatModel, direction: Direction
) -> Side:
    """A side whose folder is claimed, and whose model all that it is asked fits."""
    folder = RunFolder(path)
    folder.check()
    for stage in stages:
        stage.check(model)
    folder.begin(asked.config, model, asked.prompts)
    return Side(asked, folder, model, plan_of(asked, model), found=direction)


def _work(side: Side, stages: Sequence[Stage]) -> None:
    for stage in stages:
        list(stage.work(side))  # they leave all in the folder


def _let_go() -> None:
    """Have the memory of a model back before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _announce(side: Side, times: int) -> None:
    """Say how long it should take, by what the stages count."""
    room = room_of(side.model)
    seconds = seconds_by_stage(side.plan, room.size, loaded_speed(side.model), room, STAGES)
    parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
    minutes = times * sum(seconds.values()) / 60
    text = "%d models like the base should take about %.0f minutes (each %s)."
    log.log(NOTE, text, times, minutes + 0.5, parts)


def _diffed(base: _Base, candidates: Sequence[Compared]) -> Diffed:
    config = base.asked.config
    options = {name: getattr(config, name) for name in SIZES}
    plain = {key: list(x) if isinstance(x, tuple) else x for key, x in options.items()}
    metrics = base_metrics(base.kept.folder, sizes_of(base.asked))
    about = (str(base.asked.folder), config.model, str(base.run), base.asked.prompts.name)
    return Diffed(*about, plain, metrics, tuple(candidates))


def run_of(name: str) -> Path | None:
    """The run folder that a base is named by, if it is one."""
    return Path(name) if is_run_folder(Path(name)) else None
