"""What `refusal export` can write."""

from typing import Literal

ExportKind = Literal["model", "lora", "direction", "gguf-control-vector"]
