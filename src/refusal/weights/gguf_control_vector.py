"""The direction as llama.cpp's control vector, for activation addition: ``--control-vector FILE``
adds it.

llama.cpp adds the tensor ``direction.k`` to the *output* of block ``k`` (0-based), at every token;
``direction.0`` is not allowed. The input of block ``l`` is the output of block ``l - 1``, so a
direction of layer ``l`` is written as ``direction.{l - 1}``, and those of layers 0 and 1 cannot be
written. The file holds the difference in means itself: strength 1 is the method's addition,
``--control-vector-scaled FILE:-1`` its subtraction.
"""

from pathlib import Path

import gguf
import torch

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.storage import write_through
from refusal.weights.verify import check_tensors, deleted_if_wrong

ARCHITECTURE = "controlvector"
FIRST_LAYER = 2  # the input of block 2 is the output of block 1, the first that llama.cpp adds to


def write_control_vector(
    direction: Direction, path: Path, n_layers: int, model_hint: str = ""
) -> None:
    """Write the file.

    Args:
        direction: what is added is ``norm * vector``, at the input of block ``layer``.
        path: the file to write.
        n_layers: number of the model's blocks.
        model_hint: the model's architecture, for a reader; llama.cpp does not check it.

    Raises:
        DirectionError: a layer that llama.cpp cannot add at.
        ExportError: the file does not hold what was written.
        StorageError: the file cannot be written.
    """
    if not FIRST_LAYER <= direction.layer < n_layers:
        raise DirectionError(
            f"The direction is added at the input of block {direction.layer} of {n_layers}, and "
            "llama.cpp adds only to the outputs of block 1 and later, which are the inputs of "
            f"blocks {FIRST_LAYER} to {n_layers - 1}. Export it with --as direction, or give the "
            "direction of a later layer."
        )
    step = (direction.vector.float() * direction.norm).cpu().numpy()

    def write(temporary: str) -> None:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_int32(
            f"{ARCHITECTURE}.layer_count", n_layers - 1
        )  # those that can have a direction
        writer.add_tensor(f"direction.{direction.layer - 1}", step)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_through(path, write)
    with deleted_if_wrong(path):
        found = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
        check_tensors(found, {f"direction.{direction.layer - 1}": torch.from_numpy(step)})
