"""The driver: runs phases one after another, evaluates, logs, saves, and goes on after an interruption."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue import checkpoint
from segue.core.algorithm import Algorithm
from segue.core.learn import (
    Program,
    begin_sampling,
    diagnose,
    initial_state,
    make_keys,
    models_after,
    scored,
)
from segue.core.phases import Phase
from segue.core.replay import empty_rows
from segue.core.types import Models, PyTree, Spec
from segue.critic_check import check_critic
from segue.data import Dataset
from segue.environment import Environment, EnvironmentMaker
from segue.evaluate import Evaluator, Player, Score, Trace
from segue.guard import Guard, Watch, told
from segue.online import OnlineLoop
from segue.preparation import Preparation
from segue.progress import Progress
from segue.records import Record, behaviour, drops, short
from segue.replay_start import PhaseData, columns_of, phase_data, return_rule
from segue.run_folder import RunFolder
from segue.stop import Diverged, Interrupted, StopSignals
from segue.tensorboard import TensorBoard
from segue.workers import OfflineWorker, OnlineWorker, Worker

DIVERGENCE_FACTOR = 10.0  # times max |reward| / (1 - discount), beyond which no value estimate makes sense
SMALLEST_REWARD_SCALE = 1.0  # for that bound: networks begin with values of their own, whatever the rewards are


@dataclass(frozen=True)
class Evaluation:
    """How often and on how many episodes policies are scored, and how often work is saved."""

    eval_interval: int | None = None  # updates between points of the offline curve; None: a twentieth [ours]
    online_eval_interval: int | None = None  # steps between points of the online curve; None: a twentieth [ours]
    eval_episodes: int = 10  # of a point of a curve [the papers' protocol; 100 on AntMaze]
    result_episodes: int = 50  # of every score that is reported as a result [ours: ten are too noisy on Hopper]
    log_interval: int = 1_000  # steps between lines of training metrics [ours]
    checkpoint_seconds: float = 60.0  # at least this long between checkpoints [ours]
    tensorboard: bool = False  # write scalars to RUN/tensorboard too [ours: off; needs the extra "tensorboard"]


class Session:
    """One run being executed."""

    def __init__(
        self,
        folder: RunFolder,
        phases: tuple[Phase, ...],
        spec: Spec,
        dataset: Dataset | None,
        preparation: Preparation,
        environment: EnvironmentMaker | None,
        environment_kwargs: dict[str, Any],
        seeds: tuple[int, ...],
        models: Models,
        first_phase: int,
        evaluation: Evaluation,
        quiet: bool,
        labels: np.ndarray | None = None,
        guard: Guard | None = None,
    ):
        self.guard = guard if guard is not None and guard.guard else None
        self.labels = labels  # actions [N, A] of an outside policy at the dataset's observations
        self.folder, self.phases, self.spec, self.dataset = folder, phases, spec, dataset
        self.preparation, self.seeds, self.models, self.first_phase = preparation, seeds, models, first_phase
        self.environment, self.environment_kwargs = environment, environment_kwargs
        self.evaluation, self.quiet = evaluation, quiet
        self.evaluator = Evaluator(environment, environment_kwargs, preparation) if environment is not None else None
        self.records: list[Record] = []
        self.remedy = f"segue resume {folder.path}"
        self.stop = StopSignals(self.remedy)
        self.saves = 0
        self.steps_before = 0  # of the phases before the one under way
        self.tensorboard: TensorBoard | None = None

    def run(self) -> dict[str, Any]:
        """Run every phase that is not done yet; the summary.

        Raises Interrupted after SIGTERM or Ctrl-C (all is saved), Diverged if a metric left every sensible range.
        """
        with self.folder.locked(), self.stop:
            index, host = self._resume_point()
            self.steps_before = sum(phase.steps for phase in self.phases[:index])
            if self.evaluation.tensorboard:
                next_step = self.steps_before + host["host"]["step"] + 1 if host else 0
                self.tensorboard = TensorBoard(self.folder.path / "tensorboard", next_step)
            try:
                for number in range(index, len(self.phases)):
                    self._run_phase(number, host)
                    self.steps_before += self.phases[number].steps
                    host = None
            finally:
                if self.tensorboard is not None:
                    self.tensorboard.close()
        return self.summary()

    # -- resuming

    def _resume_point(self) -> tuple[int, dict[str, Any] | None]:
        latest = self.folder.latest_whole()
        if latest is None:
            self.folder.forget_after(0)
            return 0, None
        manifest = checkpoint.read_manifest(latest)
        self.folder.forget_after(manifest["metrics_bytes"])
        self.saves = int(latest.name)
        self.records = [Record(**record) for record in manifest["records"]]
        index = manifest["phase"]
        for phase in self.phases[:index]:
            template = models_after(phase, self.models, self.spec, make_keys(self.seeds, 0))
            self.models = checkpoint.load(self.folder.models_path(phase.name), template)
        return index, manifest | {"path": latest}

    # -- one phase

    def _run_phase(self, number: int, host: dict[str, Any] | None) -> None:
        phase = self.phases[number]
        data = phase_data(phase, self.dataset, self.preparation, self.models, len(self.seeds), self.labels)
        worker = self._worker(number, phase, data)
        kind = "online" if phase.online else "offline"
        if host is not None:
            tree = checkpoint.load(host["path"], self._checkpoint_template(worker, host["host"]))
            worker.restore(tree, host["host"])
            record = self.records[number]
        else:
            if isinstance(worker, OnlineWorker):
                worker.loop.begin()
            first = 0 if phase.online else self._interval(phase)
            record = Record(phase.name, kind, phase.steps, first, selection=data.selection)
            self.records.append(record)
        if data.selection and not self.quiet and phase.selection.rule != "none":
            share = data.selection["trusted_fraction"]
            print(f"{phase.name}: |D-hat|/|D| = {share:.3f} ({data.selection['rule']})", flush=True)
        unit = "env steps" if phase.online else "updates"
        with Progress(phase.name, phase.steps, unit, worker.step, self.quiet) as progress:
            self._drive(number, phase, worker, record, data, progress)
        self.models = self.models | phase.algorithm.export(worker.state)
        manifest = {"preparation": self.preparation.as_dict(), "spec": list(self.spec)}
        checkpoint.save(self.folder.models_path(phase.name), self.models, manifest)
        self.folder.write_summary(self.summary())

    def _worker(self, number: int, phase: Phase, data: PhaseData) -> Worker:
        keys = make_keys(self.seeds, self.first_phase + number)
        models = jax.tree.map(jnp.asarray, self.models)
        state = initial_state(phase.algorithm, phase.continued(models), self.spec, keys)
        program = Program(phase.algorithm, phase.mix, self.spec)
        columns = {name: jnp.asarray(flags) for name, flags in data.columns.items()}
        if phase.online is None:
            assert data.rows is not None
            return OfflineWorker(program, state, columns, keys, data.rows)
        assert self.environment is not None
        online, sampler = phase.online, phase.online.sampler
        program = program._replace(online_share=online.online_share_of_all or online.online_share, sampler=sampler)
        capacity = phase.algorithm.batch_size if phase.mix == "rollout" else online.env_steps
        empty = empty_rows(self.spec, capacity, tuple(columns))
        rows = jax.tree.map(lambda x: jnp.repeat(x[None], len(self.seeds), 0), empty)
        if data.ring_start is not None:
            rows = jax.tree.map(lambda first, x: jnp.concatenate([jnp.asarray(first), x], 1), data.ring_start, rows)
        loop = OnlineLoop(
            program=program,
            schedule=online,
            environments=[Environment(self.environment, self.environment_kwargs) for _ in self.seeds],
            preparation=self.preparation,
            state=state,
            rows=rows,
            priorities=(
                begin_sampling(sampler, online.ring_start, models, rows, columns, keys, data.rows) if sampler else None
            ),
            columns=columns,
            offline=data.rows,
            keys=keys,
            seeds=self.seeds,
            new_row_extras=data.new_row_extras,
            running_return=data.running_return,
            watch=Watch(self.guard, phase.algorithm, state, self.seeds) if self.guard else None,
            return_rule=(
                return_rule(phase) if "return_to_go" in columns_of(phase) else None
            ),
        )
        return OnlineWorker(loop)

    def _checkpoint_template(self, worker: Worker, host: dict[str, Any]) -> PyTree:
        template = {"state": worker.state}
        if isinstance(worker, OnlineWorker):
            template["rows"] = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((x.shape[0], host["used"], *x.shape[2:]), x.dtype), worker.loop.rows
            )
            if worker.loop.watch:
                template["guard"] = worker.loop.watch.tree()
            if worker.loop.priorities:
                template["priorities"] = worker.loop.priorities
        return template

    def _interval(self, phase: Phase) -> int:
        chosen = self.evaluation.online_eval_interval if phase.online else self.evaluation.eval_interval
        return chosen or phase.evaluation_interval or max(1, phase.steps // 20)

    def _drive(
        self, number: int, phase: Phase, worker: Worker, record: Record, data: PhaseData, progress: Progress
    ) -> None:
        """Alternate work, evaluation, logging and saving until the phase's last step."""
        clock = saved = time.perf_counter()
        spent = record.wall_time_s
        log_interval = self.evaluation.log_interval
        next_log = (worker.step // log_interval + 1) * log_interval
        while True:
            done = worker.step >= phase.steps or worker.finished
            if worker.step >= record.next_evaluation or done:
                self._evaluate(phase, worker, record, done, progress)
            record.wall_time_s = spent + time.perf_counter() - clock
            record.steps = worker.step if done else phase.steps
            overdue = time.perf_counter() - saved > self.evaluation.checkpoint_seconds
            if self.stop.requested() or done or overdue:
                self._save(number, worker)
                saved = time.perf_counter()
            if self.stop.requested():
                raise Interrupted(
                    f"stopped in phase '{phase.name}' at step {worker.step:,}; everything is saved, go on with: "
                    f"{self.remedy}",
                    self.stop.exit_code,
                )
            if done:
                return
            until = min(record.next_evaluation, next_log, phase.steps)
            for line in worker.advance(until, self.stop.requested):
                self._happened({"kind": "episode", "phase": phase.name} | line, record)
            progress.at(worker.step)
            self._check(phase, worker, data.reward_scale or 0.0)
            if worker.step >= next_log or worker.step >= phase.steps or worker.finished:
                self._log(phase, worker, data, record.wall_time_s)
                next_log += log_interval

    # -- evaluation

    def _policy(self, phase: Phase, worker: Worker, k: int) -> Player:
        state = jax.tree.map(lambda x: x[k], worker.state)
        return Player(phase.algorithm, state, self.spec)

    def _evaluate(self, phase: Phase, worker: Worker, record: Record, done: bool, progress: Progress) -> None:
        """Score every seed; results (first and last point, the online phase's first tenth) take more episodes."""
        step, interval = worker.step, self._interval(phase)
        wanted = phase.algorithm.policy_kind is not None and (done or not phase.algorithm.keeps_policy)
        if self.evaluator is None or not wanted or (done and record.final):
            record.next_evaluation = step + interval
            return
        is_result = done or (phase.online is not None and step <= phase.steps // 10)
        episodes = self.evaluation.result_episodes if is_result else self.evaluation.eval_episodes
        begins = step == 0 and "actor" in self.models
        lines, traces = [], []
        for k, seed in enumerate(self.seeds):
            policy = self._policy(phase, worker, k)
            score = self.evaluator.score(policy, episodes, seed, self.stop.requested, trace=done or begins)
            if score is None:
                return  # interrupted: it is made up for after the resume
            lines.append({"step": step, "seed": seed} | self._describe(score))
            traces.append(score.trace)
        if type(phase.algorithm).scored is not Algorithm.scored:  # else it would only be compiled
            scores = np.asarray([line["return_mean"] for line in lines], np.float32)
            worker.state = scored(phase.algorithm, worker.state, scores)
        if step == 0 and isinstance(worker, OnlineWorker) and worker.loop.watch:
            worker.loop.watch.begin([np.asarray(line["returns"]) for line in lines], worker.state)
        for line in lines:
            self._write({"kind": "evaluation", "phase": phase.name} | line)
        brief = [{key: value for key, value in line.items() if key != "returns"} for line in lines]
        record.evaluations += brief
        if done:
            record.final = lines
        if begins:
            record.handover = brief
        self._check_critic(phase, worker, record, traces)
        record.next_evaluation = step + interval
        progress.say("score " + " ".join(short(line) for line in brief))

    def _check_critic(self, phase: Phase, worker: Worker, record: Record, traces: list[Trace | None]) -> None:
        """How every seed's critic, if there is one, agrees with the episodes that were traced."""
        models = self.models | phase.algorithm.export(worker.state)
        for k, (seed, trace) in enumerate(zip(self.seeds, traces, strict=True)):
            if trace is None:
                continue
            found = check_critic(models, phase.algorithm.gives, trace, phase.algorithm.discount, seed, k)
            if found is not None:
                entry = {"step": worker.step, "seed": seed, "policy": phase.algorithm.policy_kind} | found
                record.critic_check.append(entry)
                self.folder.log({"kind": "critic_check", "phase": phase.name} | entry)

    def _describe(self, score: Score) -> dict[str, Any]:
        normalised = error = None
        if self.dataset is not None and self.dataset.reference_scores is not None:
            low, high = self.dataset.reference_scores
            normalised, error = 100 * (score.mean - low) / (high - low), 100 * score.standard_error / (high - low)
        return {
            "episodes": len(score.returns),
            "return_mean": score.mean,
            "return_std": float(score.returns.std()),
            "return_standard_error": score.standard_error,
            "normalised_mean": normalised,
            "normalised_standard_error": error,
            "length_mean": float(score.lengths.mean()),
            "returns": score.returns.tolist(),
        }

    # -- logging and saving

    def _happened(self, line: dict[str, Any], record: Record) -> None:
        """Log an episode, or what the guard did, which is said even if quiet."""
        self.folder.log(line)
        if self.guard and line["kind"] == "guard":
            record.guard.append(line)
            print(told(line, self.guard), file=sys.stderr, flush=True)

    def _log(self, phase: Phase, worker: Worker, data: PhaseData, wall_time_s: float) -> None:
        means = worker.metrics.drain()
        if data.probe is not None:
            probe_columns = {name: jnp.asarray(x) for name, x in data.probe_columns.items()}
            means |= jax.device_get(diagnose(phase.algorithm, worker.state, probe_columns, data.probe))
        for k, seed in enumerate(self.seeds):
            values = {name: value[k] for name, value in means.items()}
            line = {"kind": "train", "phase": phase.name, "step": worker.step, "seed": seed, "wall_time_s": wall_time_s}
            if data.selection is not None:
                line["trusted_fraction"] = data.selection["trusted_fraction"]
            self._write(line | values)

    def _write(self, line: dict[str, Any]) -> None:
        self.folder.log(line)
        if self.tensorboard is not None:
            self.tensorboard.write(line, self.steps_before + line["step"])

    def _check(self, phase: Phase, worker: Worker, reward_scale: float) -> None:
        """Raise Diverged for NaN, infinity, or values that no reward so far can make.

        It comes after every call and before whatever uses or saves the state that the call made.
        """
        largest = max(reward_scale, worker.largest_reward(), SMALLEST_REWARD_SCALE)
        limit = DIVERGENCE_FACTOR * largest / (1 - phase.algorithm.discount)
        for averages in (worker.metrics.peek(), worker.metrics.latest, worker.vitals()):
            for name, values in averages.items():
                bad = ~np.isfinite(values) if name != "critic_1_mean" else ~(np.abs(values) <= limit)
                if bad.any():
                    k = int(np.argmax(bad))
                    raise Diverged(self._diagnosis(phase, worker, f"{name} of seed {self.seeds[k]} is {values[k]:.4g}"))

    def _diagnosis(self, phase: Phase, worker: Worker, what: str) -> str:
        latest = self.folder.latest()
        kept = f"the last good checkpoint is {latest}" if latest else "no checkpoint was made yet"
        stable = " or --critic-layer-norm" if getattr(phase.algorithm, "critic_layer_norm", True) is False else ""
        return (
            f"phase '{phase.name}' diverged before step {worker.step:,}: {what}; {kept}. To go on from there would "
            f"diverge again: start a new run with a lower learning rate{stable}"
        )

    def _save(self, number: int, worker: Worker) -> None:
        self.saves += 1
        manifest = {
            "phase": number,
            "records": [vars(record) for record in self.records],
            "host": worker.host_state(),
        }
        self.folder.save(self.saves, worker.tree(), manifest)

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        config = self.folder.config
        phases = []
        for record in self.records:
            entry = {k: v for k, v in vars(record).items() if k not in ("next_evaluation", "selection") and v != []}
            entry["steps_per_second"] = record.steps / record.wall_time_s if record.wall_time_s else None
            if record.kind == "online" and record.handover:
                entry["drop"] = drops(record)
            phases.append(entry)
        summary = {key: config[key] for key in ("method", "dataset", "environment", "seeds")}
        selections = [record.selection for record in self.records if record.selection]
        if selections:
            summary["selection"] = selections[0]
        if self.dataset is not None:
            summary["behaviour"] = behaviour(self.dataset)
        return summary | {"phases": phases}
