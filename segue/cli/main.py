"""`segue`: the command line. This module imports nothing heavy, so that `segue --help` answers at once."""

from __future__ import annotations

import os
import sys
from importlib import import_module

COMMANDS = {
    "demo": ("segue.cli.demo", "the whole job on built-in Hopper data in a few minutes: offline, online, report"),
    "train": ("segue.cli.train", "METHOD: learn a policy from a dataset (sac, td3: in an environment)"),
    "finetune": ("segue.cli.train", "RUN or --policy FILE: go on improving a trained policy in an environment"),
    "run": ("segue.cli.train", "METHOD: offline, then online, in one run"),
    "evaluate": ("segue.cli.runs", "RUN: score a trained policy over fresh episodes"),
    "resume": ("segue.cli.runs", "RUN: go on after an interruption, from the last checkpoint"),
    "report": ("segue.cli.report", "RUN...: curves, figures and a table as one HTML page, PNGs and CSV"),
    "sweep": ("segue.cli.sweep", "FILE: a grid of runs, methods x datasets x seeds x settings, and its table"),
    "data": ("segue.cli.data", "list, look at, check and convert datasets"),
    "methods": ("segue.cli.runs", "the methods, what each does and when to choose it"),
}
EXIT_USER_ERROR, EXIT_DIVERGED = 2, 3
PATIENCE_SECONDS = 7.0  # after a signal


def usage() -> str:
    """The text of `segue --help`."""
    from segue import __version__

    lines = [
        f"segue {__version__}: learn a policy from a dataset, then go on improving it online",
        "",
        "usage: segue COMMAND [ARGUMENTS]        segue COMMAND --help tells more",
        "",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        "",
        "first steps:  segue demo        segue data list        segue methods",
    ]
    return "\n".join(lines)


def choose_threads() -> None:
    """A run uses every core that it is given; pinned to one (taskset -c 0 segue ...), it starts no other threads.

    Measured: one run on two idle cores makes almost twice the updates of one core (results/benchmarks); NumPy's own
    thread pool, on the other hand, only gets in the way of that.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flag, flags = "--xla_cpu_multi_thread_eigen", os.environ.get("XLA_FLAGS", "")
    if cores == 1 and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=false".strip()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code: 0, 2 after a user's mistake, 3 if learning diverged, 130 or 143 if stopped."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from segue import __version__

        print(__version__)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "segue --help lists the commands"
        print(f"segue: '{name}' is no command; {hint}", file=sys.stderr)
        return EXIT_USER_ERROR
    choose_threads()
    return guarded(name, arguments[1:])


def guarded(name: str, arguments: list[str]) -> int:
    """Run a command and turn what a user can mend, or asked for, into one line and an exit code."""
    import warnings

    from segue import stop
    from segue.errors import UserError
    from segue.stop import Diverged, Interrupted

    warnings.formatwarning = lambda message, *_, **__: f"segue {name}: warning: {message}\n"
    stop.patience_seconds = PATIENCE_SECONDS
    module = import_module(COMMANDS[name][0])
    try:
        if name in ("train", "finetune", "run", "evaluate", "resume", "methods"):
            return int(getattr(module, name)(arguments))
        return int(module.main(arguments))
    except UserError as error:
        print(f"segue {name}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except PermissionError as error:
        print(f"segue {name}: {error.filename}: permission denied", file=sys.stderr)
        return EXIT_USER_ERROR
    except Diverged as error:
        print(f"segue {name}: {error}", file=sys.stderr)
        return EXIT_DIVERGED
    except Interrupted as error:
        print(f"segue {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"segue {name}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
