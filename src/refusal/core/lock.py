"""One run at a time in a folder: a lock file that names the process which works there.

The file is left behind only by a process that was killed; whoever finds it then sees that the
process is gone, and takes the folder over. What such a process was writing (temporary files of
``storage``) is removed at the same time.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from refusal.core import parallel
from refusal.core.errors import RunFolderError
from refusal.core.storage import left_by_dead, temporary_prefix

NAME = ".lock"
_held: set[Path] = set()  # by this process


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder inside the block; of several processes of a run, the first holds it for all.

    Raises:
        RunFolderError: another process works there, or the folder cannot be made.
    """
    made: list[Path] = []
    parallel.only_writer(lambda: made.extend(_take(folder)))
    try:
        yield
    finally:
        if parallel.is_writer():
            _give_back(folder, made)


def _take(folder: Path) -> list[Path]:
    """Make the lock file; returns the folders that had to be made for it."""
    file = folder / NAME
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while not _create(file):
            found = _read(file)
            if found is not None and (_is_held(folder) or not _is_gone(found)):
                raise RunFolderError(_message(folder, found))
            _remove_stale(file, found)
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be used ({error.strerror}). Give another --out."
        ) from error
    _held.add(folder.resolve())
    for left in (*left_by_dead(folder), *folder.glob(".vllm-*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return made


def _give_back(folder: Path, made: list[Path]) -> None:
    """Remove the lock file, and folders made for it that are still empty."""
    _held.discard(folder.resolve())
    (folder / NAME).unlink(missing_ok=True)
    for path in made:
        try:
            path.rmdir()
        except OSError:  # something is in it, as a rule
            return


def _create(file: Path) -> bool:
    """Make the lock file with its content in one step; false if there is one."""
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": psutil.Process().create_time(),
    }
    whole = file.with_name(temporary_prefix(NAME) + "new")
    whole.write_text(json.dumps(about), encoding="utf-8")
    try:
        try:
            os.link(whole, file)
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            with file.open("x", encoding="utf-8") as made:
                made.write(json.dumps(about))
    except FileExistsError:
        return False
    finally:
        whole.unlink(missing_ok=True)
    return True


def _read(file: Path) -> dict[str, Any] | None:
    """Who holds the lock; ``None`` if it was given back meanwhile."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}


def _is_held(folder: Path) -> bool:
    return folder.resolve() in _held


def _is_gone(found: dict[str, Any]) -> bool:
    """Whether the process that made the lock has ended; of one on another machine that is not
    known.
    """
    if found.get("host") != socket.gethostname():
        return False
    pid, started = found.get("pid"), found.get("started")
    if not isinstance(pid, int) or not isinstance(started, int | float) or pid == os.getpid():
        return True
    try:
        process = psutil.Process(pid)
        return bool(
            abs(process.create_time() - started) > 1 or process.status() == psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _remove_stale(file: Path, found: dict[str, Any] | None) -> None:
    """Remove a lock whose process is gone, unless somebody else has just taken the folder over."""
    if found is None:
        return
    aside = file.with_name(temporary_prefix(NAME) + "old")
    try:
        file.rename(aside)
    except FileNotFoundError:
        return
    taken = _read(aside)
    if taken is not None and taken != found:  # a living process's: put it back
        with suppress(FileExistsError):
            os.link(aside, file)
    aside.unlink(missing_ok=True)


def _message(folder: Path, found: dict[str, Any]) -> str:
    if not found:
        return f"{folder / NAME} is no lock of this program. Delete it, or give another --out."
    who = f"process {found.get('pid')} on {found.get('host')}"
    mend = "Wait until it has ended, or give another --out."
    if found.get("host") != socket.gethostname():
        mend += f" If that process is gone, delete {folder / NAME}."
    return f"{folder} is in use: {who} works there. {mend}"
