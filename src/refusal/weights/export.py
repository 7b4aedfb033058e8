"""From a run folder to an export: its direction, the model that its config names, its test prompts."""

from pathlib import Path
from typing import Literal

from refusal.config import make_config
from refusal.errors import ConfigError, DirectionError, RunFolderError
from refusal.prompts import load_prompts
from refusal.records import Direction
from refusal.run import load_for
from refusal.storage import check_room
from refusal.weights.save import Exported, export_direction, export_lora, export_model

Kind = Literal["model", "lora", "direction"]


def export_run(run: Path, kind: Kind, out: Path, *, n_prompts: int = 16, preserve_norm: bool = False) -> Exported:
    """Write what the run in the folder ``run`` has found.

    Args:
        run: a run folder that has come as far as its direction.
        kind: ``model``, ``lora`` or ``direction``.
        out: a new or empty folder.
        n_prompts: how many of the run's test prompts, of both classes, to measure the agreement with the hooks on.
        preserve_norm: see ``orthogonalise``; not for an adapter, because that edit is not of rank one.

    Raises:
        RunFolderError: the folder holds no run.
        DirectionError: it has no direction yet, or one of another model.
        ConfigError: ``preserve_norm`` for an adapter.
        refusal.Error: what the export raises.
    """
    config_file, direction_file = run / "run.toml", run / "direction.safetensors"
    if not config_file.is_file():
        raise RunFolderError(f"{run} holds no run.toml. Give the folder of a run: refusal run MODEL --out {run}.")
    if not direction_file.is_file():
        raise DirectionError(f"The run in {run} has no direction yet. Finish it: refusal select --out {run}.")
    direction = Direction.load(direction_file)
    if kind == "direction":
        return export_direction(direction, out)
    if preserve_norm and kind == "lora":
        raise ConfigError("--preserve-norm is an edit of full rank, which no adapter holds. Use --as model.")
    check_room(out, 0)  # before anything slow
    config = make_config(None, config_file)
    splits = load_prompts(
        config.prompts, seed=config.seed, dedup=config.dedup, data_dir=config.data_dir, column=config.column
    )
    half = (n_prompts + 1) // 2
    texts = [p.text for p in (*splits.test.harmful[:half], *splits.test.harmless[: n_prompts - half])]
    model = load_for(config)
    if kind == "lora":
        return export_lora(model, direction, out, texts)
    return export_model(model, direction, out, texts, preserve_norm=preserve_norm)
