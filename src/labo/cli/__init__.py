"""The command line, one file per command. Heavy imports wait until a command runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from labo import interrupts
from labo.cli import streams
from labo.errors import UserError

# What Typer returns for Ctrl-C; shells give a program that a signal ended the signal's number above 128.
_INTERRUPTED, _SIGNALLED = 130, 128
# Seconds that the other processes wait before they exit: torchrun ends all as soon as one exits, and the process that
# reports the failure needs time to print it.
_REPORT_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; a user error is one sentence on stderr and status 2."""
    streams.prepare()
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        if status <= _SIGNALLED or arguments is not None:
            sys.stdout.flush()  # a reader that has left is noticed here, not at exit
        else:
            # Exit at once: Python would first wait for its threads.
            with suppress(OSError):  # a terminal that has gone
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        return status
    except UserError as error:
        return _print_error(str(error))
    except ModuleNotFoundError as error:
        from labo import machine

        extra = machine.extra_of((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _print_error(
            f"This command needs {error.name}, which the extra '{extra}' installs: pip install -e '.[{extra}]'."
        )
    except OSError as error:
        if isinstance(error, BrokenPipeError) and streams.silence_if_left():
            return 0
        path = f" ('{error.filename}')" if error.filename else ""
        return _print_error(f"Operating-system error: {error.strerror or error}{path}.")


def _run(arguments: list[str]) -> int:
    import typer

    from labo.cli.app import app

    # So that --methods my_module:MyRegularizer finds user modules; last, so that no file there shadows a library.
    sys.path.append(os.getcwd())
    try:
        with interrupts.as_ctrl_c():
            status = app(args=arguments or ["--help"], prog_name="labo", standalone_mode=False) or 0
    except typer.Abort:  # what some versions of Typer raise for Ctrl-C
        status = _INTERRUPTED
    except SystemExit as ending:  # what Typer makes of a broken pipe
        raise ending.__context__ if isinstance(ending.__context__, BrokenPipeError) else ending from None
    except Exception as error:
        if interrupts.passed_on() and isinstance(error, OSError):  # the terminal has gone
            return interrupts.exit_status()
        # Typer's usage errors; no version of Typer makes their class public.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        message = format_message().strip()
        return _print_error(f"{message}{'' if message.endswith(('.', '?')) else '.'} {_help_hint(error)}")
    if status == _INTERRUPTED:
        status = interrupts.exit_status()
        if _reports_errors():
            with suppress(OSError):
                print("Interrupted. Finished work is recorded; run the same command again to resume.", file=sys.stderr)
    return status


def _help_hint(error: Exception) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", None) or "labo"
    return f"See {path} --help."


def _print_error(sentence: str) -> int:
    if _reports_errors():
        print(f"labo: {sentence}", file=sys.stderr)
    return 2


def _reports_errors() -> bool:
    """Whether this process prints the error that ends it; of several that train together, one does."""
    from labo import machine

    if machine.launched() == 1:
        return True
    from labo import distributed

    if distributed.should_report_failure():
        return True
    time.sleep(_REPORT_SECONDS)
    return False
