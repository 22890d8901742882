"""`segue demo`: the whole job at a size for one sitting: data, offline, online, report."""

from __future__ import annotations

from pathlib import Path

from segue.cli.options import Parser

DATASET, TRANSITIONS = "segue/hopper-medium-replay", 200_000
UPDATES, ONLINE_STEPS = 40_000, 10_000
METHOD = "td3_bc_ssar"
SETTINGS = {"warmup_steps": 1_000}
PLAN = f"{UPDATES:,} updates offline, {ONLINE_STEPS:,} steps online"


def main(argv: list[str]) -> int:
    """Run the demo; 0."""
    parser = Parser(
        prog="segue demo",
        description=f"{METHOD} on {TRANSITIONS:,} transitions of {DATASET}: {PLAN} in Hopper-v5, then the report. "
        "Under 10 minutes on 2 cores. Interrupted, it goes on where it was.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default runs/demo)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    from segue import api
    from segue.cli.table import print_result
    from segue.report import write_report
    from segue.session import Evaluation

    if (options.out / "config.json").is_file():
        print(f"{options.out} is there already: going on with it")
        run = api.resume(options.out)
    else:
        print(f"{METHOD} on {DATASET}: the data, then {PLAN}, then the report")
        run = api.run(
            METHOD,
            DATASET,
            out=options.out,
            steps=UPDATES,
            online_steps=ONLINE_STEPS,
            settings=SETTINGS,
            seeds=(options.seed,),
            transitions=TRANSITIONS,
            evaluation=Evaluation(eval_interval=UPDATES // 10, online_eval_interval=ONLINE_STEPS // 10),
        )
    print_result(run)
    print(f"pictures:   {write_report([run.path], run.path / 'report')}")
    return 0
