"""Where a named data file lies: in the folder given with ``--data-dir`` or one folder below it."""

from pathlib import Path

from refusal.core.text_files import is_file, is_folder


def find_data_file(data_dir: Path, name: str) -> Path | None:
    """``data_dir/name`` or ``data_dir/*/name``, the first in sorted order; ``None`` if there is
    none.
    """
    folders = (
        sorted(data_dir.iterdir()) if is_folder(data_dir) else []
    )  # no pattern: a name may hold [ and *
    places = (data_dir / name, *(folder / name for folder in folders))
    return next((path for path in places if is_file(path)), None)
