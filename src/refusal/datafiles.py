"""Where a named data file lies: in the folder given with ``--data-dir`` or one folder below it."""

from pathlib import Path


def find_data_file(data_dir: Path, name: str) -> Path | None:
    """``data_dir/name`` or ``data_dir/*/name``, the first in sorted order; ``None`` if there is none."""
    places = [data_dir / name, *sorted(data_dir.glob(f"*/{name}"))]
    return next((path for path in places if path.is_file()), None)
