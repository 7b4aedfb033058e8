"""The verbs that look at weights alone: what was done to a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from refusal.cli import present as display
from refusal.cli.options import Json, Quiet, Verbose
from refusal.cli.progress_bars import reporting


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


FOUND = Layout()


def forensics(
    checkpoint: Annotated[str, Parameter(help="Folder or hub id; with --base also an adapter's.")],
    /,
    *,
    base: Annotated[str | None, Parameter(help="What it was made from: folder or hub id.")] = None,
    out: Annotated[
        Path | None, Parameter(help="Folder for forensics.html, forensics.json and the figure.")
    ] = None,
    layout: Annotated[Layout, Parameter(name="*")] = FOUND,
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
    from refusal.audits.forensics.examine import Known, compare_weights
    from refusal.report.forensics_page import write_forensics

    known = Known(**vars(layout))
    with reporting(quiet, verbose):
        if base is None:
            record, _ = examine_weights(checkpoint, known=known)
        else:
            record = compare_weights(checkpoint, base, known=known).record
    display.present(record, json, quiet)
    if out is not None:
        display.show_notice(f"Page: {write_forensics(record, out)}")
