"""The command line: one file a command. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from labo.errors import UserError

# What shells call a program that Ctrl-C ended.
_INTERRUPTED = 130
# Seconds that a process which has nothing to tell gives the one that has: torchrun ends all when the first has ended.
_HEARD = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. What the user can mend is one sentence on stderr and status 2."""
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        if status == _INTERRUPTED and arguments is None:
            # At once: Python would first wait for what threads are at.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status
    except UserError as error:
        return _tell(str(error))
    except ModuleNotFoundError as error:
        from labo import machine

        extra = machine.extra_of((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _tell(f"This command needs {error.name}, which the extra '{extra}' brings: pip install -e '.[{extra}]'.")
    except BrokenPipeError:
        # The reader of a pipe has gone; nothing more can be told, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        at = f" ('{error.filename}')" if error.filename else ""
        return _tell(f"The system refuses: {error.strerror or error}{at}.")


def _run(arguments: list[str]) -> int:
    import typer

    from labo.cli.app import app

    # Where methods of one's own lie: --methods my_module:MyRegularizer. Last, so that no file there hides a library.
    sys.path.append(os.getcwd())
    try:
        status = app(args=arguments or ["--help"], prog_name="labo", standalone_mode=False) or 0
    except typer.Abort:  # how some versions of Typer tell of Ctrl-C
        status = _INTERRUPTED
    except Exception as error:
        # Typer's errors of usage; their class is public in no version of it.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        told = message().strip()
        return _tell(f"{told}{'' if told.endswith(('.', '?')) else '.'} {_help_of(error)}")
    if status == _INTERRUPTED and _speaks():
        print("Interrupted; what is finished is recorded, and the same command goes on from there.", file=sys.stderr)
    return status


def _help_of(error: Exception) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", None) or "labo"
    return f"See {path} --help."


def _tell(sentence: str) -> int:
    if _speaks():
        print(f"labo: {sentence}", file=sys.stderr)
    return 2


def _speaks() -> bool:
    """Whether this process tells of what ends it: of several that train together, one does."""
    from labo import machine

    if machine.launched() == 1:
        return True
    from labo import distributed

    if distributed.should_report_failure():
        return True
    time.sleep(_HEARD)
    return False
