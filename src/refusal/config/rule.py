"""The thresholds of the selection rule."""

from dataclasses import dataclass

from refusal.core.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """The thresholds (paper section 2.3 and appendix C).

    ``prune_layers`` is the share of the last layers that is not eligible: a candidate needs
    ``layer < int(n_layers * (1 - prune_layers))``, floored as in the released code.
    """

    induce_threshold: float = 0.0
    kl_threshold: float = 0.1
    prune_layers: float = 0.2

    def eligible_layers(self, n_layers: int) -> int:
        """Layers ``0 .. value - 1`` are eligible."""
        return int(n_layers * (1.0 - self.prune_layers))

    def check(self, n_layers: int) -> None:
        """Raise ConfigError unless a layer is eligible."""
        if self.eligible_layers(n_layers) < 1:
            raise ConfigError(
                f"--prune-layers {self.prune_layers:g} leaves none of the model's {n_layers} "
                "layers. Give less."
            )
