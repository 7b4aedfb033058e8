"""What is read of the stream while rows are written, without a pass of its own: how far each token
lies along the direction, and (of prompts) what a monitor says.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from refusal.core.direction import Direction
from refusal.core.errors import ConfigError
from refusal.core.monitor import Reader
from refusal.interventions.conditional import Gate
from refusal.model.hooks import Edit
from refusal.model.sites import Sites


class Reading:
    """Reads whatever rows run; it changes nothing.

    It must be applied before the interventions, so that it sees what a block is given.
    """

    def __init__(self, direction: Direction | None, gate: Gate | None = None) -> None:
        self.direction, self.gate = direction, gate
        self.z: dict[int, Float[Tensor, " row"]] = {}  # of prompts, by the monitor's reader
        self.unit = None if direction is None else direction.vector.float()
        self.along: Float[Tensor, " row"] | None = None

    def check(self) -> None:
        """Raise ConfigError where there is no direction to project on."""
        if self.direction is None:
            raise ConfigError(
                "There is no direction to project tokens on: the model is served as it is. Serve "
                "the folder of a run, or give --direction."
            )

    def edits(self, model: PreTrainedModel, sites: Sites) -> list[Edit]:
        """Reads of what the blocks are given."""
        found = []
        if self.direction is not None:
            block = model.get_submodule(sites.reading(self.direction.layer))
            found.append(Edit(block, "input", self._keep))
        if self.gate is not None:
            for number, reader in enumerate(self.gate.monitor.readers):
                block = model.get_submodule(sites.reading(reader.layer))
                found.append(Edit(block, "input", partial(self._watch, number, reader)))
        return found

    def _watch(self, number: int, reader: Reader, x: Float[Tensor, "row token d_model"]) -> None:
        """Where each prompt lies; all of them end with the template's last token."""
        if x.shape[1] > 1 and self.gate is not None:
            self.z[number] = reader.z(x[:, reader.place(len(self.gate.suffix))])

    def scores(self, places: Sequence[int]) -> list[float]:
        """What the monitor says of the prompts that were read last, of some rows of the batch."""
        if not places or self.gate is None:
            return []
        logits = self.gate.monitor.scores(self.z[0], self.z[1])
        found: list[float] = logits[torch.tensor(list(places))].tolist()
        return found

    def _keep(self, x: Float[Tensor, "row token d_model"]) -> None:
        """Each row's last token, float32."""
        unit = self.unit
        assert unit is not None
        self.along = x[:, -1].float() @ unit.to(x.device)

    def projections(self, places: Sequence[int]) -> list[float]:
        """How far the token that was read last lies along the direction, of some rows of the
        batch.
        """
        if not places or self.along is None:
            return []
        found: list[float] = self.along[torch.tensor(list(places))].tolist()
        return found
