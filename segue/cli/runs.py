"""`segue evaluate`, `segue resume`, `segue methods`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from segue.cli.options import Parser
from segue.errors import UserError
from segue.run_folder import OFFLINE_EVALUATION, as_json

EPISODES = 50


def evaluate(argv: list[str]) -> int:
    """`segue evaluate RUN`: every seed's last policy, by episodes in its environment or from data alone."""
    parser = Parser(
        prog="segue evaluate",
        description="Score a trained policy over fresh episodes, or with --offline estimate its discounted value from "
        "data alone (fitted Q evaluation, with a bootstrap interval). The estimate takes about 5 minutes a seed on 2 "
        "cores: 9 fits of 20,000 updates, whatever the number of transitions.",
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--offline", action="store_true", help="from data alone, without an environment")
    group = parser.add_argument_group("in the environment")
    online = [
        group.add_argument("--episodes", type=int, help=f"of every seed's policy (default {EPISODES})"),
        group.add_argument("--env", help="Gymnasium id (default: the run's)"),
    ]
    group = parser.add_argument_group("with --offline")
    switch: Any = {"action": "store_true", "default": None}
    offline = [
        group.add_argument("--dataset", help="evaluate on other data (default: the run's)"),
        group.add_argument("--transitions", type=int, help="of that data: size of built-in data, or rows of a file"),
        group.add_argument("--seeds", type=int, nargs="+", help="whose policies (default: all of the run)"),
        group.add_argument("--steps", type=int, help="updates of every fit (default: 20,000 at discount 0.99)"),
        group.add_argument("--replicates", type=int, help="bootstrap fits beside the estimate's own (default 8)"),
        group.add_argument("--confidence", type=float, help="of the interval (default 0.95)"),
        group.add_argument("--discount", type=float, help="of the value (default: the policy's own in learning)"),
        group.add_argument("--stochastic", **switch, help="as the policy explores, not its greedy action"),
        group.add_argument("--quiet", **switch, help="no progress on the terminal"),
    ]
    options = parser.parse_args(argv)
    for action in online if options.offline else offline:
        if getattr(options, action.dest) is not None:
            problem = "does not go with --offline: leave one of them out" if options.offline else "needs --offline"
            raise UserError(f"{action.option_strings[0]} {problem}")
    return _evaluate_offline(options) if options.offline else _evaluate_online(options)


def _evaluate_offline(options: Namespace) -> int:
    from segue.api import Run
    from segue.offline_evaluation import OfflineEvaluation, report_lines

    given = {"updates": options.steps} | {
        name: getattr(options, name) for name in ("replicates", "confidence", "discount", "stochastic")
    }
    report = Run(options.run).evaluate_offline(
        options.dataset,
        OfflineEvaluation(**{name: value for name, value in given.items() if value is not None}),
        seeds=tuple(options.seeds) if options.seeds else None,
        transitions=options.transitions,
        quiet=bool(options.quiet or options.json),
    )
    print(json.dumps(as_json(report.as_dict())) if options.json else "\n".join(report_lines(report)))
    if not options.json:
        print(f"written to {options.run / OFFLINE_EVALUATION}")
    return 0


def _evaluate_online(options: Namespace) -> int:
    episodes = EPISODES if options.episodes is None else options.episodes
    if episodes < 1:
        raise UserError(f"--episodes {episodes}: at least 1")
    from segue.api import Run

    scores = Run(options.run).evaluate(episodes, options.env)
    if options.json:
        print(json.dumps({str(seed): score.returns.tolist() for seed, score in scores.items()}))
        return 0
    for seed, score in scores.items():
        lengths = f"episodes of {score.lengths.mean():.0f} steps"
        print(f"seed {seed}: return {score.mean:.1f} ± {score.standard_error:.1f} over {episodes} {lengths}")
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
