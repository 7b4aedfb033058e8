"""What the model takes for harmful, against what it says of it: the difference in means at the last
token of the instruction (arXiv 2507.11878).

After that token come the template's, at which the refusal direction is read. The paper finds that
steering along this one changes the model's judgement, along the other one only its words.
"""

from jaxtyping import Float
from torch import Tensor

from refusal.config.run_config import RunConfig
from refusal.directions.from_activations import FromActivations, Rows


class Harmfulness(FromActivations):
    """``mean_harmful - mean_harmless`` of each layer, one position before the template's tokens."""

    at_instruction = True

    def find(self, harmful: Rows, harmless: Rows, config: RunConfig) -> Float[Tensor, "1 d_model"]:
        """The difference in means of one layer."""
        return (harmful.mean(0) - harmless.mean(0))[None]
