"""What an examination of weights cannot say: shown with every verdict."""

from collections.abc import Sequence

from refusal.audits.forensics.records import Layer

NO_SCORE = (
    "This is no safety score, in either direction: a model that is edited may still refuse, and "
    "one that is not may answer everything."
)
WHICH = (
    "Weights do not say what a direction means, nor its sign: --prove tries it on the base model."
)
OTHER_WAYS = (
    "Refusals that were trained away, steered at run time or undone by a template are no "
    "projection, and are not seen here."
)
BASE_AS_GIVEN = "The base is taken as it is: whether it was edited itself is asked of it alone."
WITHOUT = (
    "Without the base only an exact projection of all that a layer writes is seen. Partial "
    "strength, edits of attention or MLPs alone, edits that keep the norms of rows (Heretic's "
    "default), reflections (Householder), and what was fine-tuned or quantised below 8 bits "
    "afterwards CANNOT be seen: give the base with --base."
)
WITH_BASE = (NO_SCORE, WHICH, OTHER_WAYS, BASE_AS_GIVEN)
WITHOUT_BASE = (WITHOUT, NO_SCORE, WHICH, OTHER_WAYS)


def lacking_note(layers: Sequence[Layer]) -> str:
    """Say that the base may be the edited one of the two; empty where nothing speaks for it."""
    count = sum(layer.lacking for layer in layers)
    if not count:
        return ""
    return (
        f"In {count} layers the base has nothing along the direction that is changed, and the "
        "candidate has: the base is edited itself, or the two are exchanged."
    )
