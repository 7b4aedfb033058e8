"""From a run folder to an export: its direction, the model that its config names, its test
prompts.
"""

from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig

from refusal.config.exports import ExportKind
from refusal.config.run_config import RunConfig, make_config, model_options
from refusal.core.direction import Direction
from refusal.core.errors import (
    ConfigError,
    DirectionError,
    ExportError,
    ModelLoadError,
    RunFolderError,
)
from refusal.core.storage import check_room
from refusal.core.valid import check_place, check_width
from refusal.model.checkpoint_check import hub_options
from refusal.model.load import LOAD_ERRORS, load_message, local_folder, resolve
from refusal.model.placement import DTYPES
from refusal.pipeline.asking import prompts_of
from refusal.pipeline.run import load_for
from refusal.runs.files import read_manifest
from refusal.weights.checkpoint_stream import stream_model
from refusal.weights.gguf_control_vector import write_control_vector
from refusal.weights.same_weights import check_files, check_loaded
from refusal.weights.save import Exported, export_direction, export_lora, export_model


def export_run(
    run: Path,
    kind: ExportKind,
    out: Path,
    *,
    n_prompts: int = 16,
    preserve_norm: bool = False,
    stream: bool = False,
    model: str | None = None,
) -> Exported:
    """Write what the run in the folder ``run`` has found.

    Args:
        run: a run folder that has come as far as its direction.
        kind: ``model``, ``lora``, ``direction`` or ``gguf-control-vector``.
        out: a new or empty folder.
        n_prompts: how many of the run's test prompts, of both classes, to measure the agreement
            with the hooks on.
        preserve_norm: see ``orthogonalise``; not for an adapter, because that edit is not of rank
            one.
        model: where the run's model is now, if it was moved; it must have the run's weights.
        stream: edit the model's files tensor by tensor instead of loading it; nothing is measured
            on prompts then.

    Raises:
        RunFolderError: the folder holds no run.
        DirectionError: it has no direction yet, or the model has other weights than the run's.
        ConfigError: ``preserve_norm`` for an adapter, ``stream`` for anything but a model.
        refusal.Error: what the export raises.
    """
    config_file, direction_file = run / "run.toml", run / "direction.safetensors"
    if not config_file.is_file():
        raise RunFolderError(
            f"{run} holds no run.toml. Give the folder of a run: refusal run MODEL --out {run}."
        )
    if not direction_file.is_file():
        raise DirectionError(
            f"The run in {run} has no direction yet. Finish it: refusal select --out {run}."
        )
    direction = Direction.load(direction_file)
    if stream and kind != "model":
        raise ConfigError(
            f"--stream edits a model's files, and --as {kind} writes none. Leave --stream out."
        )
    if kind == "direction":
        return export_direction(direction, out)
    config = make_config(None, config_file)
    if model is not None:
        config = config.model_copy(update={"model": model})
    direction = replace(direction, model=config.model)  # it is the weights that are compared
    if kind == "gguf-control-vector":
        return _export_control_vector(config, direction, out)
    manifest = read_manifest(run)
    if stream:
        folder = local_folder(config.model, config.revision)
        check_files(run, manifest, folder, config.model)
        return stream_model(
            folder,
            direction,
            out,
            name=config.model,
            preserve_norm=preserve_norm,
            options=model_options(config),
        )
    if preserve_norm and kind == "lora":
        raise ConfigError(
            "--preserve-norm is an edit of full rank, which no adapter holds. Use --as model."
        )
    check_room(out, 0)  # before anything slow
    splits = prompts_of(config)
    half = (n_prompts + 1) // 2
    test = (*splits.test.harmful[:half], *splits.test.harmless[: n_prompts - half])
    questions = [prompt.question for prompt in test]
    dtype = (
        config.dtype if config.dtype != "auto" else manifest["model"].get("dtype")
    )  # as the run's was
    # A run may have been split, an export is not.
    loaded = load_for(
        config.model_copy(update={"tp_plan": None, "dtype": dtype if dtype in DTYPES else "auto"})
    )
    check_loaded(run, manifest, loaded)
    check_width(direction.vector, loaded.sites.d_model)
    positions = len(loaded.chat.suffix) + 1  # and the last token of the instruction
    check_place(direction.position, direction.layer, positions, loaded.sites.n_layers)
    if kind == "lora":
        return export_lora(loaded, direction, out, questions)
    return export_model(loaded, direction, out, questions, preserve_norm=preserve_norm)


def _export_control_vector(config: RunConfig, direction: Direction, out: Path) -> Exported:
    path = out if out.suffix == ".gguf" else out / "control-vector.gguf"
    if path.exists():
        raise ExportError(f"{path} exists. Give another --out, or delete it.")
    try:
        found = AutoConfig.from_pretrained(resolve(config.model), **hub_options(config.revision))
    except LOAD_ERRORS as error:
        raise ModelLoadError(load_message(config.model, error)) from error
    text = found.get_text_config()
    check_width(direction.vector, text.hidden_size)
    write_control_vector(direction, path, text.num_hidden_layers, text.model_type)
    return Exported("gguf-control-vector", path)
