"""What is left of the base's direction in a candidate's residual stream, and where its own points.

    stream.safetensors   mean stream of harmful and of harmless prompts by position and layer, of
                         training and of validation prompts: the same for every model, unfiltered

With ``D = mean_harmful - mean_harmless`` and the base's direction ``r`` (unit), ``D_candidate . r /
D_base . r`` on validation prompts is the share that is left; the cosine is that of the two models'
``D`` on training prompts, of which a method makes its candidates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.core.direction import Direction
from refusal.core.records import Metric, PromptPair
from refusal.core.storage import write_tensors
from refusal.core.strict_files import damaged, read_arrays
from refusal.core.work import Read, Work
from refusal.directions.pool import Draw, collect_drawn, tokens_before
from refusal.evaluations.diff.result import StreamDiff
from refusal.evaluations.diff.side import STREAM, Side, asked_like
from refusal.runs.folder import prompts_hash
from refusal.runs.stage import Plan, Run, Stage

FILE = "stream.safetensors"
EQUAL = (
    1e-6  # of a mean's length: means that are no further apart (before the first block) are equal
)
HARDLY = 0.01  # of the base's difference is along its direction: nothing can be left of so little


class Streamed(Stage):
    """The means of one model."""

    name = "stream"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Training and validation prompts of both classes, once."""
        config, lengths = plan.config, plan.lengths
        return (Read(2 * config.n_train, lengths.train), Read(2 * config.n_val, lengths.val))

    def work(self, run: Run) -> Iterable[Metric]:
        """Read the prompts as the base is asked them."""
        assert isinstance(run, Side)
        if STREAM in run.missing:
            return ()
        config, pools = run.config, self.asked.prompts
        used = {
            "train": _first(pools.train, config.n_train),
            "val": _first(pools.val, config.n_val),
        }
        with asked_like(run.model, run.base):
            before = tokens_before(run.model, run.about)
        inputs = {
            "prompts": {k: prompts_hash([*p.harmful, *p.harmless]) for k, p in used.items()},
            "before": before,
            **({} if run.base is None else {"asked": run.base.identity["rendered_hash"]}),
        }
        path = run.folder.path / FILE

        def work() -> None:
            tensors = {}
            with asked_like(run.model, run.base):
                for name, pair in used.items():
                    found = collect_drawn(run.model, pair, Draw(None, False, before))
                    tensors[f"{name}.harmful"] = found.harmful.float()
                    tensors[f"{name}.harmless"] = found.harmless.float()
            write_tensors(path, tensors)

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        return ()


def _first(pair: PromptPair, n: int) -> PromptPair:
    return PromptPair(pair.harmful[:n], pair.harmless[:n])


@dataclass(frozen=True)
class Differences:
    """``mean_harmful - mean_harmless`` of one model, float64.

    Attributes:
        train, val: of which prompts. apart: where the means are no equals.
    """

    train: Float[Tensor, "position layer d_model"]
    val: Float[Tensor, "position layer d_model"]
    apart: Bool[Tensor, "position layer"]


def differences(folder: Path) -> Differences:
    """The differences in means of a side.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """
    path = folder / FILE
    arrays, _ = read_arrays(path)
    found, apart = [], []
    for split in ("train", "val"):
        pair = [arrays.get(f"{split}.{label}") for label in ("harmful", "harmless")]
        if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
            raise damaged(path, f"it lacks the means of {split} prompts")
        harmful, harmless = (torch.from_numpy(array).double() for array in pair)
        found.append(harmful - harmless)
        apart.append(found[-1].norm(dim=-1) > EQUAL * harmless.norm(dim=-1))
    return Differences(found[0], found[1], apart[0] & apart[1])


def stream_diff(base: Path, candidate: Path, direction: Direction, prompts: int) -> StreamDiff:
    """Compare the means of two models.

    Args:
        base, candidate: folders of the sides.
        direction: the base's.
        prompts: validation prompts of each class.

    Raises:
        RunFolderError: a file is damaged.
    """
    ours, theirs = differences(base), differences(candidate)
    unit = direction.vector.double()
    there, left = ours.val @ unit, theirs.val @ unit
    along = ours.apart & (there.abs() > HARDLY * ours.val.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(ours.train, theirs.train, dim=-1, eps=1e-300)
    total = float(there.abs().sum())
    return StreamDiff(
        _grid(left / there.where(along, torch.ones_like(there)), along),
        _grid(cosine, ours.apart & theirs.apart),
        direction.position,
        direction.layer,
        float((left * there.sign()).sum()) / total if total > 0 else None,
        prompts,
    )


def _grid(
    values: Float[Tensor, "position layer"], known: Bool[Tensor, "position layer"]
) -> tuple[tuple[float | None, ...], ...]:
    rows = zip(values.tolist(), known.tolist(), strict=True)
    return tuple(tuple(_known(*cells) for cells in zip(*row, strict=True)) for row in rows)


def _known(value: float, known: bool) -> float | None:
    return value if known else None
