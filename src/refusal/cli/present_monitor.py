"""How the terminal shows a monitor that was fitted, and what came of its evaluation."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from refusal.cli.console import err, out
from refusal.cli.drawing import drawn

if TYPE_CHECKING:
    from refusal.directions.monitor.fit import Fitted
    from refusal.evaluations.monitor.records import Evaluated


def show_fitted(found: "Fitted") -> None:
    """Where it reads, how well that tells the validation prompts apart, and the threshold."""
    monitor = found.monitor
    best = {f"{score.reader} {score.layer}": score for score in found.layers}
    for name, reader in (("refusal", monitor.refusal), ("harmfulness", monitor.harmfulness)):
        area = best[f"{name} {reader.layer}"].auroc
        where = "last token" if reader.position == -1 else "last token of the instruction"
        err.print(f"{name}: {where}, input of block {reader.layer}, AUROC {area:.3f}")
    counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in found.counts.items())
    err.print(
        f"  both together: AUROC {found.auroc:.3f} on the validation prompts it was fitted to"
    )
    err.print(f"  prompts: {counts}")
    out.print(
        f"fires above {monitor.threshold:.3f}, which at most {monitor.eps:.2%} of harmless prompts "
        "like those of the calibration exceed"
    )


def fitted_value(found: "Fitted") -> dict[str, Any]:
    """The record as JSON, without its vectors."""
    monitor = found.monitor
    places = {}
    for name, one in (("refusal", monitor.refusal), ("harmfulness", monitor.harmfulness)):
        places[name] = {
            "layer": one.layer,
            "position": one.position,
            "mean": one.mean,
            "sd": one.sd,
        }
    return {
        "model": monitor.model,
        **places,
        "weights": list(monitor.weights),
        "bias": monitor.bias,
        "threshold": monitor.threshold,
        "eps": monitor.eps,
        "auroc": found.auroc,
        "counts": found.counts,
        "layers": [asdict(score) for score in found.layers],
    }


def show_evaluated(found: "Evaluated") -> None:
    """The tables, and what one must know of them."""
    from refusal.report.monitor_page import monitor_tables

    for each in monitor_tables(found):
        err.print(drawn(each))
    for note in found.notes:
        err.print(f"  {note}")


# By the name of a record's class: how it is shown, and its JSON.
MONITOR_VIEWS: dict[str, tuple[Callable[[Any], None], Callable[[Any], Any]]] = {
    "Fitted": (show_fitted, fitted_value),
    "Evaluated": (show_evaluated, asdict),
}
