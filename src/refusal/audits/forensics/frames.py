"""Coordinates in which an edit is a projection.

Written straight to the stream, that is the plain weight. Behind a post-norm with gain ``g`` it is
``g`` times it (METHODS: rows scaled by the gain). An edit of a weight whose rows were first brought
to length one, and back to their lengths afterwards, is one in the rows of length one.
"""

from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.pairs import Change
from refusal.audits.forensics.records import Frame
from refusal.audits.forensics.writers import Writer

SMALLEST = 1e-3  # of the largest scale: what is divided by must not be nothing


def frames_of(writers: list[Writer]) -> tuple[Frame, ...]:
    """The frames to look in, the likeliest first."""
    behind: tuple[Frame, ...] = (
        ("behind its norm",) if any(w.gain is not None for w in writers) else ()
    )
    return (*behind, "plain", "rows of length one")


def scale_of(frame: Frame, writer: Writer, change: Change) -> Float[Tensor, "d_model"] | None:
    """What each row of a writer is multiplied by in a frame, float32; ``None`` for nothing."""
    if frame == "plain":
        return None
    if frame == "behind its norm":
        return None if writer.gain is None else writer.gain.float()
    squares = sum(base.square().sum(1) for base, _ in change.blocks())
    assert isinstance(squares, Tensor)
    lengths = squares.sqrt()
    return 1 / lengths.clamp_min(SMALLEST * float(lengths.max()) + 1e-30)
