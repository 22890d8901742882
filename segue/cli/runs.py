"""`segue evaluate`, `segue resume`, `segue methods`."""

from __future__ import annotations

import json
from pathlib import Path

from segue.cli.options import Parser
from segue.errors import UserError


def evaluate(argv: list[str]) -> int:
    """`segue evaluate RUN`: returns of every seed's last policy."""
    parser = Parser(prog="segue evaluate", description="Score a trained policy over fresh episodes.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=50, help="of every seed's policy (default 50)")
    parser.add_argument("--env", help="Gymnasium id (default: the run's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    if options.episodes < 1:
        raise UserError(f"--episodes {options.episodes}: at least 1")
    from segue.api import Run

    scores = Run(options.run).evaluate(options.episodes, options.env)
    if options.json:
        print(json.dumps({str(seed): score.returns.tolist() for seed, score in scores.items()}))
        return 0
    for seed, score in scores.items():
        lengths = f"episodes of {score.lengths.mean():.0f} steps"
        print(f"seed {seed}: return {score.mean:.1f} ± {score.standard_error:.1f} over {options.episodes} {lengths}")
    return 0


def resume(argv: list[str]) -> int:
    """`segue resume RUN`."""
    parser = Parser(prog="segue resume", description="Go on with an interrupted run from its last checkpoint.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    options = parser.parse_args(argv)
    from segue import api
    from segue.cli.table import print_result

    return print_result(api.resume(options.run, quiet=options.quiet))


def methods(argv: list[str]) -> int:
    """`segue methods`."""
    Parser(prog="segue methods", description="The methods that this version has.").parse_args(argv)
    from segue.cli.train import method_table

    print(method_table())
    return 0
