"""From a command line to an exit code: 0 done, 1 documented failure, 2 wrong usage."""

import signal
import sys
from collections.abc import Callable

import cyclopts
from pydantic import ValidationError

from refusal.cli import console
from refusal.cli import present as display
from refusal.cli.verbs import app
from refusal.config.run_config import wrong_value
from refusal.core import parallel
from refusal.core.errors import Error
from refusal.core.secrecy import check_arguments

INTERRUPTED = 130
BROKEN_PIPE = 141  # as a program that SIGPIPE ends
SHORT = {"--no-filter": ("--filter", "none")}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return _guarded(lambda: _parse(given))


def _parse(arguments: list[str]) -> None:
    """Run a command; what it leaves unwritten is written here, where a failure can still be
    told.
    """
    check_arguments(arguments)
    arguments = [part for word in arguments for part in SHORT.get(word, (word,))]
    app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    console.flush()


def _guarded(call: Callable[[], object]) -> int:
    """Every expected end as one message and an exit code."""
    try:
        call()
    except Error as error:
        if parallel.speaks_of(error):
            display.show_error(error)
        return error.exit_code
    except cyclopts.CycloptsError as error:
        display.show_error(_usage_message(error))
        return 2
    except BrokenPipeError:  # whoever read the output has gone, and wants no message
        console.close_output()
        return BROKEN_PIPE
    except OSError as error:
        name = "" if error.filename is None else f"{str(error.filename)[:200]}: "
        display.show_error(
            f"{name}{error.strerror or error}. Check the path, its permissions and the disk."
        )
        return 2
    except KeyboardInterrupt:
        display.show_notice(
            "Interrupted. A run keeps its finished stages: the same command goes on from there."
        )
        return INTERRUPTED
    return 0


def _usage_message(error: cyclopts.CycloptsError) -> str:
    """What is wrong with the arguments, on one line, and where to look."""
    cause = error.__cause__
    wrong = (
        str(wrong_value(cause))
        if isinstance(cause, ValidationError)
        else " ".join(str(error).split())
    )
    return f"{wrong} See: {' '.join(['refusal', *(error.command_chain or ()), '--help'])}."


def entry() -> None:
    """The console script; told to end (by a scheduler, or by a launcher that lost another process)
    it cleans up.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console.prepare_output()
    code = main()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing of ours is left to clean up
    sys.exit(code)
