"""``projections.json``: how far each validation prompt lies along the direction, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refusal.core.records import Label
from refusal.core.stats import auroc
from refusal.core.strict_files import damaged, read_one
from refusal.runs.files import MOST

LABELS: tuple[Label, Label] = ("harmful", "harmless")


@dataclass(frozen=True)
class Projections:
    """What ``projections.json`` holds, by class.

    Attributes:
        position: the post-instruction position that everything is read at; ``layer`` is the
            direction's.
        along: ``along[label][prompt][layer]``, the residual stream's component along the unit
            direction.
        plane: ``plane[label][prompt]``, coordinates in the plane of the two largest principal
            components at ``layer``.
        explained: shares of the variance that those two explain.
        cosines: of the two components with the direction.
    """

    position: int
    layer: int
    along: Mapping[str, tuple[tuple[float, ...], ...]]
    plane: Mapping[str, tuple[tuple[float, float], ...]]
    explained: tuple[float, float]
    cosines: tuple[float, float]

    @property
    def auroc(self) -> list[float]:
        """By layer, the chance that a harmful prompt projects further than a harmless one."""
        harmful, harmless = (list(zip(*self.along[label], strict=True)) for label in LABELS)
        found = [auroc(list(high), list(low)) for high, low in zip(harmful, harmless, strict=True)]
        return [0.5 if value is None else value for value in found]


def read_projections(path: Path) -> Projections:
    """What was written.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """
    found: Projections = read_one(path, Projections)
    for name, by_class in (("along", found.along), ("plane", found.plane)):
        if set(by_class) != set(LABELS) or not all(by_class.values()):
            raise damaged(
                path, f"{name}: not some rows of harmful and of harmless prompts, and of no others"
            )
    lengths = {len(row) for label in LABELS for row in found.along[label]}
    if len(lengths) != 1 or not -MOST <= found.position < 0 <= found.layer < max(lengths):
        raise damaged(path, f"along: not as many layers in every row, {found.layer} among them")
    return found
