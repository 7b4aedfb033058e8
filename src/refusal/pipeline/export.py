"""From a run folder to an export: its direction, the model that its config names, its test
prompts.
"""

from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig

from refusal.config.exports import ExportEdit, ExportKind
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
from refusal.interventions.ablate_add import Ablate
from refusal.interventions.conditions import action_of
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

AS_FOUND = ExportEdit()


def export_run(
    run: Path,
    kind: ExportKind,
    out: Path,
    *,
    n_prompts: int = 16,
    edit: ExportEdit = AS_FOUND,
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
        edit: what is done to the weights: which ablation, how strong, and whose norms are kept.
        model: where the run's model is now, if it was moved; it must have the run's weights.
        stream: edit the model's files tensor by tensor instead of loading it; nothing is measured
            on prompts then.

    Raises:
        RunFolderError: the folder holds no run.
        DirectionError: it has no direction yet, or the model has other weights than the run's.
        ConfigError: an edit or ``stream`` that this kind of export has not, or an intervention
            that weights cannot do.
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
    _check_edit(edit, kind)
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
            ablation_of(direction, edit),
            out,
            name=config.model,
            norm=edit.norm,
            options=model_options(config),
        )
    ablation = ablation_of(direction, edit)
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
        return export_lora(loaded, ablation, out, questions)
    return export_model(loaded, ablation, out, questions, norm=edit.norm)


def _check_edit(edit: ExportEdit, kind: ExportKind) -> None:
    """Raise ConfigError for an edit that this kind of export has not."""
    if kind == "lora" and edit.norm is not None:
        raise ConfigError(
            "With --norm the edit is of full rank, which no adapter holds. Use --as model."
        )
    if kind not in ("model", "lora") and edit != AS_FOUND:
        raise ConfigError(
            f"--as {kind} writes what was found and edits no weights. Leave --intervention, "
            "--strength, --rank and --norm out, or use --as model or --as lora."
        )


def ablation_of(direction: Direction, edit: ExportEdit) -> Ablate:
    """The ablation that an export is asked for.

    Raises:
        ConfigError: weights cannot do the intervention, or it has another strength already.
        DirectionError: the direction's subspace has fewer rows than are asked for.
    """
    if edit.rank is not None:
        if not 1 <= edit.rank <= direction.rank:
            raise DirectionError(
                f"The direction has a subspace of {direction.rank} dimension(s), so --rank "
                f"{edit.rank} is not in it. Give one from 1 to {direction.rank}."
            )
        rows, places = direction.rows[: edit.rank], direction.places[: edit.rank]
        direction = replace(direction, basis=rows, row_places=places)
    action = action_of(edit.intervention)
    made = action.make(direction)
    if not isinstance(made, Ablate):
        raise ConfigError(
            f"Weights cannot do {edit.intervention}: it is no projection of what is written to the "
            "stream. Use ablation, projected, per_layer or kernel."
        )
    if edit.strength is None:
        return made
    if action.numbers and made.kernel is None:
        raise ConfigError(
            f"{edit.intervention} has a strength behind its name. Leave it or --strength out."
        )
    return replace(made, alpha=edit.strength)


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
