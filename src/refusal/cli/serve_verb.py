"""The verb that serves a model under its conditions."""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from refusal.cli import present as display
from refusal.cli.options import MODEL_DEFAULTS, ModelGroup, Quiet, Verbose
from refusal.cli.progress_bars import reporting
from refusal.config.options import ModelOptions
from refusal.config.run_config import make_config
from refusal.config.serve import ServeOptions
from refusal.core.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from refusal.core.direction import Direction
    from refusal.model.chat_model import ChatModel

ServeGroup = Annotated[ServeOptions, Parameter(name="*", group=Group("Server", sort_key=0))]
SERVE_DEFAULTS = ServeOptions()
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    model: Annotated[
        str | None,
        Parameter(help="Run folder, hub id, folder, .gguf file, or embedded (the default)."),
    ] = None,
    /,
    *,
    direction: Annotated[
        Path | None,
        Parameter(help="A direction.safetensors; default: the run folder's, else none."),
    ] = None,
    serving: ServeGroup = SERVE_DEFAULTS,
    options: ModelGroup = MODEL_DEFAULTS,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Serve a model for any client of OpenAI's chat completions: its "models" are the conditions,
    NAME, NAME:ablation, NAME:addition@0.5, and requests of all of them are written side by side.

    A page to try it is at its address. A key in REFUSAL_API_KEY must be sent by clients; without
    one only this machine is answered. SIGINT or SIGTERM stops it.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(
            f"refusal serve needs {', '.join(missing)}. Install it with: pip install "
            "'refusal[serve]'."
        )
    from refusal.core.monitor import Monitor
    from refusal.engines.serve.guard import KEY, check_host
    from refusal.engines.serve.server import serve as run_server
    from refusal.engines.serve.service import Service
    from refusal.interventions.conditional import gate_of

    key = os.environ.get(KEY) or None
    check_host(serving.host, key)
    asked, given = model or "embedded", options.model_dump(exclude_unset=True)
    with reporting(quiet, verbose):
        loaded, found = _loaded(asked, direction, given)
        gate = None
        if serving.monitor is not None:
            gate = gate_of(loaded, Monitor.load(serving.monitor))
        name = serving.name or _name(asked)
        service = Service(loaded, found, name, serving, gate=gate, key=key)

    def ready(address: str) -> None:
        if not quiet:
            names = ", ".join(one["id"] for one in service.models())
            display.show_notice(f"Serving {names}.")
            display.show_notice(f"Page: {address}   OpenAI: {address}/v1   Stop with Ctrl-C.")

    run_server(service, ready)


def _loaded(
    asked: str, file: Path | None, given: dict[str, Any]
) -> "tuple[ChatModel, Direction | None]":
    """The model and a direction that fits it, if there is one.

    Raises:
        RunFolderError: the run has no direction yet. DirectionError: it is of another model.
        ConfigError: the model would be split over processes.
    """
    from refusal.core.direction import Direction
    from refusal.core.valid import check_place, check_width
    from refusal.model.load import load
    from refusal.runs.files import is_run_folder, read_manifest
    from refusal.weights.same_weights import check_loaded

    run = Path(asked) if is_run_folder(Path(asked)) else None
    how: dict[str, Any] = given
    if run is not None:
        file = file or run / "direction.safetensors"
        if not file.is_file():
            raise RunFolderError(
                f"{run} holds no direction yet. Find it first: refusal select --config "
                f"{run / 'run.toml'} --out {run}."
            )
        config = make_config(None, run / "run.toml", **given)
        how = {name: getattr(config, name) for name in ModelOptions.model_fields}
        asked = config.model
    if how.get("tp_plan") is not None:
        raise ConfigError("A server is one process: --tp-plan cannot be used. Leave it out.")
    found = None if file is None else Direction.load(file)
    model = load(asked, **how)
    if found is None:
        return model, None
    if run is not None and file == run / "direction.safetensors":
        check_loaded(run, read_manifest(run), model)
        found = replace(found, model=model.name)
    check_width(found.vector, model.sites.d_model)
    positions = len(model.chat.suffix) + 1  # and the last token of the instruction
    check_place(found.position, found.layer, positions, model.sites.n_layers)
    return model, found


def _name(asked: str) -> str:
    """What a model is called that was given no name: a folder's own, or a hub id."""
    name = Path(asked).resolve().name if Path(asked).exists() else asked
    return "-".join(name.replace(":", " ").split()) or "model"
