"""The commands of a grid checked, and its data made once, before it begins.

`python -m segue.sweep.check SWEEP commands|data`, asked by segue.sweep.before on standard input, in a process of its
own: JAX and the data are gone with it. What is wrong is one line on standard output and exit code 2.
"""

from __future__ import annotations

import json
import sys

from segue.api import check_options
from segue.cli.train import Plan, plan_finetune, plan_run, plan_train
from segue.core.phases import Phase
from segue.core.phases import check as check_phases
from segue.data.load import split_options
from segue.data.recipes import recipe
from segue.errors import UserError
from segue.experiment import form_after, load_shown
from segue.recipes.base import Recipe
from segue.sweep.child import stop_with

Line = list[list[str]]  # command lines, each going on from the run of the one before
Data = tuple[str, int | None, str | None]  # reference, rows, environment


def check_line(line: Line) -> Data | None:
    """Raise UserError if one of the commands is wrong; the dataset that they learn from."""
    phases: tuple[Phase, ...] = ()
    before: tuple[str, Recipe] | None = None
    data: Data | None = None
    for command, *words in line:
        if command == "finetune":
            assert before is not None
            plan = plan_finetune(words, before, seeds=(0,))
        else:
            plan = plan_run(words) if command == "run" else plan_train(words)
        options = plan.options
        recipes = [plan.settings, *([plan.offline[1]] if plan.offline else [])]
        online_steps = getattr(options, "online_steps", options.steps)
        check_options(recipes, options.steps, online_steps, options.seeds, options.evaluation)
        phases += _phases(command, plan, phases, before)
        before = (plan.method, plan.settings)
        if options.dataset:
            data = (options.dataset, options.transitions, options.env)
    check_phases(phases, set(), None)
    return data


def _phases(
    command: str, plan: Plan, so_far: tuple[Phase, ...], before: tuple[str, Recipe] | None
) -> tuple[Phase, ...]:
    """Of one command, after the phases of those before it."""
    steps = plan.options.steps
    name, first = plan.offline or (plan.method, plan.settings)
    if command == "finetune" or (command == "train" and not first.needs_dataset):
        changed = before is not None and before[0] != plan.method
        handover = plan.settings.handover_phases(form_after(so_far, None)) if changed else ()
        return (*handover, plan.settings.online_phase(steps))
    if not first.needs_dataset:
        raise UserError(f"{name} has no offline phase: name one with `offline` under `settings`")
    offline = first.offline_phases(steps)
    if command == "train":
        return offline
    handover = plan.settings.handover_phases(form_after(offline, None)) if plan.offline else ()
    return (*offline, *handover, plan.settings.online_phase(plan.options.online_steps))


def _main(parent: int, make_data: bool) -> int:
    stop_with(parent)
    wanted: dict[Data, str] = {}
    place = ""
    try:
        for place, line in json.load(sys.stdin):
            data = check_line(line)
            if data is not None:
                wanted.setdefault(data, place)
        for data in wanted:
            place, builtin = wanted[data], data[0].startswith("segue/")
            if make_data or not builtin:
                load_shown(*data)
            else:
                recipe(split_options(data[0])[0].removeprefix("segue/"))
    except UserError as error:
        print(f"{place}: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), sys.argv[2] == "data"))
