"""The verbs that look at weights alone: what was done to a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from refusal.cli import present as display
from refusal.cli.options import Json, Quiet, Verbose
from refusal.cli.progress_bars import reporting

if TYPE_CHECKING:
    from torch import Tensor

    from refusal.audits.forensics.records import Proof


@dataclass(frozen=True)
class Layout:
    """What is told of a model's kind where it is not found."""

    blocks: Annotated[
        str | None, Parameter(help="Path of the decoder blocks, where it is not found.")
    ] = None
    writers: Annotated[
        tuple[str, ...],
        Parameter(help="Modules of a block that write to the stream, where they are not found."),
    ] = ()


@dataclass(frozen=True)
class How(Layout):
    """How a checkpoint is examined."""

    prove: Annotated[
        bool,
        Parameter(negative="", help="With --base: load it, and try the recovered direction on it."),
    ] = False


@dataclass(frozen=True)
class HowToRepair(Layout):
    """What a repair is written as."""

    as_: Annotated[
        Literal["model", "lora"],
        Parameter(name="--as", help="A folder, or a LoRA adapter for the edited checkpoint."),
    ] = "model"


LOOK, REPAIR = How(), HowToRepair()


def forensics(
    checkpoint: Annotated[str, Parameter(help="Folder or hub id; with --base also an adapter's.")],
    /,
    *,
    base: Annotated[str | None, Parameter(help="What it was made from: folder or hub id.")] = None,
    out: Annotated[
        Path | None, Parameter(help="Folder for page, JSON, figure and the recovered direction.")
    ] = None,
    how: Annotated[How, Parameter(name="*")] = LOOK,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Was this checkpoint edited by projection, along what, how strongly, in which layers? By its
    weights, tensor by tensor; no model is loaded.

    With --base partial and norm-preserving edits are found too; without, only exact projections.
    A verdict about weights is no safety score.
    """
    from refusal.audits.forensics.alone import examine_weights
    from refusal.audits.forensics.examine import Known, compare_weights, save_directions
    from refusal.core.errors import ConfigError
    from refusal.report.forensics_page import write_forensics

    if how.prove and base is None:
        raise ConfigError("--prove tries the direction on the base. Give it with --base.")
    known = Known(how.blocks, how.writers)
    with reporting(quiet, verbose):
        if base is None:
            record, directions = examine_weights(checkpoint, known=known)
        else:
            examined = compare_weights(checkpoint, base, known=known)
            record, directions = examined.record, examined.directions
        if how.prove and base is not None and len(directions):
            record = replace(record, proofs=_proved(base, directions))
    display.present(record, json, quiet)
    if out is not None:
        display.show_notice(f"Page: {write_forensics(record, out)}")
        save_directions(directions, out)


def _proved(base: str, directions: "Tensor") -> "tuple[Proof, ...]":
    """The recovered directions tried on the base model, with the built-in prompts."""
    from refusal.audits.forensics.prove import prove
    from refusal.model.load import load
    from refusal.prompts.load import load_prompts

    return prove(load(base), directions, load_prompts("builtin"))


def repair(
    candidate: Annotated[str, Parameter(help="Folder or hub id of the edited checkpoint.")],
    /,
    *,
    base: Annotated[str, Parameter(help="What it was made from: folder or hub id.")],
    out: Annotated[
        Path | None, Parameter(help="New or empty folder; default CANDIDATE-repaired.")
    ] = None,
    how: Annotated[HowToRepair, Parameter(name="*")] = REPAIR,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Put back what was projected out of a checkpoint, from its base: a new folder, written tensor
    by tensor.

    Only layers in which the edit is verified are touched (refusal forensics CANDIDATE --base BASE
    shows which). It says what it cannot restore.
    """
    from refusal.audits.forensics.examine import Known
    from refusal.audits.forensics.repair import repair as write_folder
    from refusal.audits.forensics.repair_adapter import repair_adapter

    undo = write_folder if how.as_ == "model" else repair_adapter
    folder = out or Path(f"{Path(candidate).name}-repaired")
    with reporting(quiet, verbose):
        done = undo(candidate, base, folder, known=Known(how.blocks, how.writers))
    display.present(done, json, quiet)
