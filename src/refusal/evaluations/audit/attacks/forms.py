"""Attacks that take the textbook direction as it is, in one form or another."""

from typing import ClassVar

from refusal.config.audit import AuditConfig
from refusal.evaluations.audit.attack import Attack, Bench, Found, Setting

STRENGTHS = (0.25, 0.5, 0.75, 1.25, 1.5)  # beside 0, the baseline, and 1, the textbook's
TEXTBOOK = "textbook"


class Textbook(Attack):
    """Ablation of the direction that the published method chooses (Arditi et al. 2024)."""

    def find(self, bench: Bench) -> Found:
        """The direction as the run has chosen it."""
        return Found({TEXTBOOK: Setting("ablation", bench.textbook)})


class _Form(Attack):
    """Another intervention along the textbook direction."""

    name: ClassVar[str]
    condition: ClassVar[str]

    def find(self, bench: Bench) -> Found:
        """The one setting that there is."""
        return Found({self.name: Setting(self.condition, bench.textbook)})


class Affine(_Form):
    """The component along the direction becomes that of harmless prompts (arXiv 2411.09003)."""

    name, condition = "affine", "affine"


class Projected(_Form):
    """Ablation of what the direction has beside the harmless mean."""

    name, condition = "projected", "projected"


class PerLayer(_Form):
    """What every block writes loses that layer's own direction."""

    name, condition = "per-layer", "per_layer"


class NormPreserving(Attack):
    """Ablation in weights whose columns keep their norms, as some published editors make it."""

    def find(self, bench: Bench) -> Found:
        """The one setting that there is."""
        return Found({"norms-kept": Setting("ablation", bench.textbook, keep_norms=True)})


class Strength(Attack):
    """Ablation of the textbook direction at other strengths; it draws the curve of refusal against
    strength, too.
    """

    def find(self, bench: Bench) -> Found:
        """Every strength of the grid."""
        found = {TEXTBOOK: Setting("ablation", bench.textbook)}
        for alpha in STRENGTHS:
            found[strength_name(alpha)] = Setting(f"ablation@{alpha:g}", bench.textbook)
        return Found(found, kept=tuple(found))

    @classmethod
    def arms(cls, config: AuditConfig) -> int:
        """All but the textbook's own."""
        return len(STRENGTHS)


def strength_name(alpha: float) -> str:
    """What the arm of a strength is called; dots would end a file's name."""
    return f"strength-{alpha:g}".replace(".", "_")
