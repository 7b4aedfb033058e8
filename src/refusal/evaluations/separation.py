"""How far harmful and harmless prompts are apart along the direction, layer by layer, as a stage of
a run.

    projections.json   of every validation prompt its projection on the direction at the input of
                       every block, and its place in the plane of the two largest principal
                       components where the direction was read

One forward pass over the prompts that the selection was made with. They did not take part in the
means, so that the separation is not of the prompts that it was fitted to.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.records import Label, Metric, PromptPair, finite
from refusal.core.storage import write_json
from refusal.core.work import Read, Work
from refusal.directions.pool import Draw, passes, run_pool, tokens_before
from refusal.runs.finding import method_of
from refusal.runs.folder import prompts_hash
from refusal.runs.projections import LABELS, read_projections
from refusal.runs.stage import Plan, Run, Stage


class Separation(Stage):
    """The projections of a run's validation prompts."""

    name = "projections"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The validation prompts of both classes."""
        return (Read(2 * plan.config.n_val, plan.lengths.val),)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave them in ``projections.json``, for the report."""
        path, found = run.folder.path / "projections.json", run.finding
        config, val = found.config, found.val
        direction = run.direction
        inputs = {
            "direction": run.direction_hash,
            "tokens": run.token_ids,
            "val": prompts_hash([*val.harmful, *val.harmless]),
            "n": config.n_val,
            "filter": method_of(config).filters(config),
        }

        def work() -> None:
            along: dict[str, list[list[float]]] = {}
            at_layer: list[Tensor] = []
            for label in LABELS:
                along[label], places = _read(run, val, label)
                at_layer.append(places)
            unit = direction.vector.double()
            points, explained, cosines = principal_plane(torch.cat(at_layer), unit)
            harmful, harmless = points.split([len(part) for part in at_layer])
            found = {
                "position": direction.position,
                "layer": direction.layer,
                "along": along,
                "plane": {"harmful": harmful.tolist(), "harmless": harmless.tolist()},
                "explained": explained,
                "cosines": cosines,
            }
            write_json(path, finite(_rounded(found)))

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        read_projections(path)
        return ()


def principal_plane(
    rows: Float[Tensor, "prompt d_model"], towards: Float[Tensor, "d_model"]
) -> tuple[Float[Tensor, "prompt 2"], list[float], list[float]]:
    """Coordinates of ``rows`` in the plane of their two largest principal components.

    Also the share of the variance that each explains, and its cosine with ``towards``; a
    component's sign is chosen so that the cosine is not negative.
    """
    centred = rows - rows.mean(0)
    left, singular, right = torch.linalg.svd(centred, full_matrices=False)
    cosines = right[:2] @ towards / towards.norm().clamp_min(1e-300)
    sign = torch.where(cosines < 0, -1.0, 1.0).double()
    shares = singular.square() / singular.square().sum().clamp_min(1e-300)
    return left[:, :2] * singular[:2] * sign, shares[:2].tolist(), (cosines * sign).tolist()


def _read(
    run: Run, val: PromptPair, label: Label
) -> tuple[list[list[float]], Float[Tensor, "prompt d_model"]]:
    """Of the prompts of a class that count in the selection: components by layer, and where they
    are at the layer.
    """
    config, direction = run.finding.config, run.direction
    filtered = method_of(config).filters(config)
    unit = direction.vector.double()
    along: list[list[float]] = []
    places: list[Tensor] = []
    for prompt, metric, activation in run_pool(
        run.model,
        getattr(val, label),
        run.tokens,
        Draw(config.n_val, filtered, tokens_before(run.model, direction)),
        f"project {label}",
        run.model.sites.n_layers,
        True,
    ):
        if activation is not None and (not filtered or passes(prompt.label, metric)):
            stream = activation[direction.position].double()
            along.append((stream @ unit).tolist())
            places.append(stream[direction.layer])
        if len(along) == config.n_val:
            break
    return along, torch.stack(places)


def _rounded(value: Any) -> Any:
    """Six significant digits: more than bfloat16 has, and a small file."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
