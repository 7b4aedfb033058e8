"""Several processes on one run (``torchrun``, ``accelerate launch``): who they are, and how they
share work.

Every process runs the same program and holds a model of its own; only ``share`` splits work, so
that no stage needs to know of processes. Units are handed out one after another by a counter in the
process group's store: a fast process takes more of them, and none waits longer than the last unit
takes. Every process then has all results, in the order of the units, and goes on alike. Process 0
writes the files; the others read them once it has (``wait``).

In a single process all of this is the plain loop, and torch is not even imported.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from refusal.core.errors import Error, RankError, UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
U = TypeVar("U")

# For the slowest unit, and for what the first process does alone (a server that starts, all its
# completions). A process that dies is noticed at once, whatever this is.
LONGEST_WAIT = timedelta(days=1)
LAUNCHER = (
    "Start the processes with torchrun, or unset WORLD_SIZE, RANK and LOCAL_RANK for one process."
)
# ``group`` is torch.distributed once processes are joined, ``store`` what their counters lie in.
_state: dict[str, Any] = {
    "group": None,
    "store": None,
    "shared": 0,
    "split": False,
    "alone": False,
}


def processes() -> int:
    """How many processes there are."""
    return _state["group"].get_world_size() if _state["group"] is not None else 1


def world() -> int:
    """How many processes share the work; one where all hold parts of one model, or where this one
    works by itself.
    """
    return 1 if _state["split"] or _state["alone"] else processes()


def split() -> bool:
    """Whether the processes hold parts of one model, so that none can run it by itself."""
    return bool(_state["split"])


def rank() -> int:
    """Which of the processes this is, from 0."""
    return _state["group"].get_rank() if _state["group"] is not None else 0


def is_writer() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


@contextmanager
def joined(split: bool = False) -> Iterator[None]:
    """Join the processes that a launcher has started, for the block; nothing to do without one, or
    inside another.

    Args:
        split: the processes hold parts of one model (tensor parallel), so all of them do all of the
            work.

    Raises:
        RankError: another process has ended, or could not be reached.
    """
    if not launched() or _state["group"] is not None:
        yield
        return
    _check_launch()
    import torch
    from torch import distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    with _failures():
        store, number, size = next(iter(rendezvous("env://", timeout=LONGEST_WAIT)))
        # Results are exchanged as Python objects on the CPU; a model that is split exchanges
        # tensors where it is.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=number, world_size=size, timeout=LONGEST_WAIT
        )
    _state.update(group=dist, store=PrefixStore("refusal", store), shared=0, split=split)
    try:
        with _failures():
            yield
    finally:
        _state.update(group=None, store=None, split=False)
        dist.destroy_process_group()


def _check_launch() -> None:
    """Raise UsageError unless the launcher's variables say which process this is and where the
    first one waits.
    """
    number, size, port = _number("RANK", -1), _number("WORLD_SIZE", 1), _number("MASTER_PORT", -1)
    if not 0 <= number < size:
        raise UsageError(f"RANK={os.environ.get('RANK')} is none of {size} processes. {LAUNCHER}")
    if not 0 < port < 65536 or not os.environ.get("MASTER_ADDR"):
        raise UsageError(
            f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}, "
            f"MASTER_PORT={os.environ.get('MASTER_PORT')} is no address of the first process. "
            f"{LAUNCHER}"
        )


def _number(name: str, default: int) -> int:
    """A number that a launcher puts into the environment.

    Raises:
        UsageError: it is none.
    """
    text = os.environ.get(name, "").strip() or str(default)
    try:
        found = int(text) if len(text) < 10 else None
    except ValueError:
        found = None
    if found is None or (found < 0 and text != str(default)):
        raise UsageError(
            f"The environment variable {name} is {text[:40]!r}, not a number from 0 on. {LAUNCHER}"
        )
    return found


def launched() -> bool:
    """Whether a launcher has started several processes."""
    return _number("WORLD_SIZE", 1) > 1


def local_number() -> int:
    """Which of a machine's processes, and so of its GPUs, this is."""
    return _number("LOCAL_RANK", 0)


def speaks_of(error: Error) -> bool:
    """Whether this process reports an error that ends it: the first does; another only one that is
    its own.
    """
    try:
        number, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    except UsageError:  # which is what is reported
        return True
    return (
        number == 0
        or number >= size
        or not (error.everywhere or isinstance(error, (RankError, UsageError)))
    )


def share(units: Sequence[U], work: Callable[[U], T]) -> list[T]:
    """``work`` on every unit, somewhere; all results, in the order of the units, in every process.

    Raises:
        refusal.Error: what ``work`` raises, in every process.
    """
    if world() == 1:
        return [work(unit) for unit in units]
    done: dict[int, T] = {}
    failed: Error | None = None
    for i in _handed_out(len(units)):
        try:
            done[i] = work(units[i])
        except Error as error:
            failed = error
            break
    everything: list[Any] = [None] * world()
    _state["group"].all_gather_object(everything, (done, failed))
    for _, what in everything:
        if what is not None:
            raise _known_everywhere(what)
    found = {i: result for part, _ in everything for i, result in part.items()}
    return [found[i] for i in range(len(units))]


def _handed_out(n: int) -> Iterator[int]:
    """Numbers below ``n``, each in one process only; every process takes part in every call, in the
    same order.
    """
    _state["shared"] += 1
    key = f"share-{_state['shared']}"
    while (i := _state["store"].add(key, 1) - 1) < n:
        yield i


def add_up(total: "torch.Tensor") -> "torch.Tensor":
    """The sum of every process's tensor (on the CPU)."""
    if world() > 1:
        _state["group"].all_reduce(total)
    return total


def total(value: int) -> int:
    """The sum of every process's number."""
    if world() == 1:
        return value
    import torch

    return int(add_up(torch.tensor(value)))


def decided(question: Callable[[], bool]) -> bool:
    """What process 0 answers; the others do not ask."""
    return from_first(question)


def from_first(work: Callable[[], T]) -> T:
    """What ``work`` gives in process 0, in every process; the others wait.

    Raises:
        refusal.Error: what ``work`` raises, in every process.
    """
    if processes() == 1:
        return work()
    found: list[Any] = []
    only_writer(lambda: found.append(work()))
    answer = found or [None]
    _state["group"].broadcast_object_list(answer)
    result: T = answer[0]
    return result


def parts() -> int:
    """How many parts a model is split into, one in each process; 1 where each has a whole one."""
    return processes() if split() else 1


def smallest(value: int) -> int:
    """The smallest of every process's numbers, so that all plan alike; those that hold parts of one
    model must.
    """
    if processes() == 1 or _state["alone"]:
        return value
    import torch

    found = torch.tensor(value)
    _state["group"].all_reduce(found, _state["group"].ReduceOp.MIN)
    return int(found)


def wait() -> None:
    """Until every process is here: what process 0 wrote before can then be read."""
    if processes() > 1:
        _state["group"].barrier()


def only_writer(work: Callable[[], object]) -> None:
    """``work`` in process 0 alone, while the others wait.

    Raises:
        refusal.Error: what ``work`` raises, in every process.
    """
    if processes() == 1:
        work()
        return
    outcome: list[Error | None] = [None]
    if is_writer():
        _state["alone"] = True
        try:
            work()
        except Error as error:
            outcome = [error]
        finally:
            _state["alone"] = False
    _state["group"].broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise _known_everywhere(outcome[0])


def _known_everywhere(error: Error) -> Error:
    error.everywhere = True
    return error


@contextmanager
def _failures() -> Iterator[None]:
    """torch's errors about lost processes as this package's."""
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise RankError(_lost(error)) from error
    except RuntimeError as error:
        if _is_lost(error):
            raise RankError(_lost(error)) from error
        raise


def _is_lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "gloo", "broken pipe", "timed out")
    return any(sign in text for sign in signs)


def _lost(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"Another process of this run has ended or cannot be reached ({first[:120]}). "
        "Finished stages are kept: start the same command again."
    )
