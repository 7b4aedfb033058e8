"""What the base predicts along some texts, kept whole on the disk while the candidates are read.

    logits/<set>.bin     the logits of every token that counts, in the model's own dtype, so that
                         nothing is lost: a row of the vocabulary each, text after text
    logits/<set>.json    the texts as token ids, the size and the dtype of a row

The file is mapped, not read: it may be larger than the memory that is free.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.progress import task
from refusal.core.storage import check_free, write_json, write_through
from refusal.core.strict_files import damaged, read_one
from refusal.evaluations.drift.measure import Drift, ForcedText, text_drift
from refusal.model.batch_size import FORCED_TOKENS
from refusal.model.chat_model import ChatModel
from refusal.model.contexts import vocabulary
from refusal.model.forward import read_from, run_batches
from refusal.model.rows import Batch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Predicted:
    """What ``logits/<set>.json`` holds."""

    texts: tuple[ForcedText, ...]
    vocabulary: int
    dtype: str

    @property
    def starts(self) -> list[int]:
        """Of each text its first row, and behind the last one the number of rows."""
        return [0, *accumulate(len(text.ids) - text.start for text in self.texts)]


def paths_of(folder: Path, set_name: str) -> tuple[Path, Path]:
    """The logits and what they are of."""
    path = folder / "logits" / f"{set_name}.bin"
    return path, path.with_suffix(".json")


def forced(
    model: ChatModel,
    texts: Sequence[ForcedText],
    name: str,
    drift: Callable[[int, Float[Tensor, "token vocab"]], Drift],
) -> tuple[Drift, ...]:
    """What becomes of every text's logits, in the order of ``texts``.

    Args:
        drift: is given a text's number and the logits that predict the tokens that count.
    """
    found: dict[int, Drift] = {}

    def run(batch: Batch) -> None:
        starts = [texts[i].start for i in batch.prompts]
        for i, logits in zip(batch.prompts, read_from(model, batch, starts), strict=True):
            found[i] = drift(i, logits)
        advance(len(batch.prompts))

    with task(f"read: {name}", len(texts), "texts") as advance:
        for _ in run_batches(model, [text.ids for text in texts], run, FORCED_TOKENS):
            pass
    return tuple(found[i] for i in range(len(texts)))


def own_drift(model: ChatModel, texts: Sequence[ForcedText], name: str) -> tuple[Drift, ...]:
    """Nats of every text; no KL (0)."""
    return forced(model, texts, name, lambda i, logits: text_drift(texts[i], logits, logits))


def keep_logits(
    model: ChatModel, texts: Sequence[ForcedText], folder: Path, set_name: str
) -> tuple[Drift, ...]:
    """Read texts, keep what is predicted of every token that counts; returns their nats.

    Raises:
        StorageError: not enough room.
    """
    path, about = paths_of(folder, set_name)
    starts = Predicted(tuple(texts), 0, "").starts
    check_free(path, starts[-1] * vocabulary(model.hf) * 4)
    drifts: list[tuple[Drift, ...]] = []
    written: list[Tensor] = []

    def write(temporary: str) -> None:
        def keep(i: int, logits: Float[Tensor, "token vocab"]) -> Drift:
            if not written:
                size = starts[-1] * logits.shape[-1]
                rows = torch.from_file(temporary, shared=True, size=size, dtype=logits.dtype)
                written.append(rows.view(starts[-1], -1))
            written[0][starts[i] : starts[i + 1]] = logits.cpu()
            return text_drift(texts[i], logits, logits)

        drifts.append(forced(model, texts, set_name, keep))

    write_through(path, write)
    (rows,) = written
    dtype = str(rows.dtype).removeprefix("torch.")
    found = Predicted(tuple(texts), rows.shape[-1], dtype)
    write_json(about, asdict(found))
    return drifts[0]


def read_predicted(folder: Path, set_name: str) -> Predicted:
    """What the base's logits are of.

    Raises:
        RunFolderError: the file cannot be read, or holds something else.
    """
    path, about = paths_of(folder, set_name)
    found: Predicted = read_one(about, Predicted)
    if found.dtype not in DTYPES or found.vocabulary < 1 or not found.texts:
        raise damaged(about, f"{found.dtype} of {found.vocabulary} are no logits")
    if any(not 1 <= text.start < len(text.ids) for text in found.texts):
        raise damaged(about, "texts: one has no token that counts")
    size = found.starts[-1] * found.vocabulary * DTYPES[found.dtype].itemsize
    if not path.is_file() or path.stat().st_size != size:
        raise damaged(path, f"it is not of the {size} bytes that {about.name} says")
    return found


def drift_from(
    model: ChatModel, predicted: Predicted, folder: Path, set_name: str
) -> tuple[Drift, ...]:
    """Nats of the base's texts, and KL of a model from what the base predicts."""
    path, _ = paths_of(folder, set_name)
    texts, starts = predicted.texts, predicted.starts
    size, dtype = starts[-1] * predicted.vocabulary, DTYPES[predicted.dtype]
    rows = torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(starts[-1], -1)

    def drift(i: int, logits: Float[Tensor, "token vocab"]) -> Drift:
        base = rows[starts[i] : starts[i + 1]].to(logits.device)
        return text_drift(texts[i], logits, base)

    return forced(model, texts, set_name, drift)
