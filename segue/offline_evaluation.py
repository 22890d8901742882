"""The value of a trained policy from data alone: fitted Q evaluation with a bootstrap over episodes.

Fit 0 sees the data as it is and gives the estimate. Every other fit is a bootstrap replicate: as many episodes, drawn
with replacement, their rows weighed by how often they were drawn. All fits learn side by side. Values are sums of
discounted raw rewards: whatever scale and bias the run trained with are left out, and the factor by which rewards are
multiplied for the fit is divided out of the values, exactly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from segue.core.algorithm import Algorithm
from segue.core.learn import Program, act_greedily, diagnose, initial_state, make_keys
from segue.core.types import Batch, Models, Spec
from segue.data import Dataset
from segue.errors import UserError
from segue.methods.fqe import FQE
from segue.preparation import Preparation
from segue.progress import Progress
from segue.replay_start import prepared_rows
from segue.settings import check_values
from segue.stop import Diverged
from segue.workers import OfflineWorker

TIME_CONSTANTS = 10  # of a value's growth, 1 / (target rate x (1 - discount)) updates each: e^-10 is left to grow
FEWEST_UPDATES = 10_000  # by default, however soon rewards are discounted away
FITTED_SCALE = 10.0  # the data's largest discounted return in the fit, whatever rewards are: Adam's steps have one size
COURSE_POINTS = 20
PROBE_ROWS = 10_000  # on which the policy's actions are compared with the data's
SLACK = 0.1  # of the range of possible values, for a fit's own error beyond its ends
HOPELESS = 10.0  # times the largest possible value: no fit comes back from there
SETTLED = 0.02  # of the value: a larger change over the last fifth of the updates is told


@dataclass(frozen=True)
class OfflineEvaluation:
    """How to evaluate."""

    updates: int | None = None  # of every fit; None: as long as values take to grow, 20,000 at discount 0.99 [ours]
    replicates: int = 8  # bootstrap replicates, each as dear as the estimate itself [ours]
    confidence: float = 0.95  # of the interval [as all of Segue's intervals]
    discount: float | None = None  # of the value; None: what the policy was trained with [ours]
    stochastic: bool = False  # the policy as it explores, instead of its greedy action [ours: greedy is what is used]

    def check(self) -> None:
        """Raise UserError for numbers that make no sense."""
        if self.updates is not None and self.updates < COURSE_POINTS:
            raise UserError(f"--steps {self.updates}: give at least {COURSE_POINTS}")
        if self.replicates < 2:
            raise UserError(f"--replicates {self.replicates}: an interval needs at least 2")
        if not 0 < self.confidence < 1:
            raise UserError(f"--confidence {self.confidence}: give a share between 0 and 1, such as 0.95")
        if self.discount is not None:
            check_values({"discount": self.discount})


@dataclass(frozen=True)
class Behaviour:
    """The policy that made the data, by the mean discounted return of its episodes."""

    value: float
    low: float
    high: float
    best: float  # highest discounted return of an episode
    cut_episodes: int  # ended by a time limit or the end of the log: what would have followed is not counted
    cut_bound: float  # by how much that could change `value` at most


@dataclass(frozen=True)
class Estimate:
    """The policy of one seed of a run."""

    seed: int
    value: float
    low: float
    high: float
    replicates: tuple[float, ...]  # the bootstrap replicates' values
    course: tuple[float, ...]  # `value` at equal distances during the fit
    action_distance: float  # mean |pi(s) - a| over data rows and dimensions, actions in [-1, 1]
    far_fraction: float  # share of the data's states where that exceeds the data's own spread, `action_spread`
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class OfflineReport:
    """What `offline_evaluation.json` holds."""

    dataset: str
    transitions: int
    episodes: int
    discount: float
    updates: int
    confidence: float
    stochastic: bool
    action_spread: float  # mean |a - b| of unrelated rows' actions a and b in the data, in [-1, 1]
    behaviour: Behaviour
    estimates: tuple[Estimate, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def returns_to_go(dataset: Dataset, discount: float) -> np.ndarray:
    """Discounted sum of raw rewards from each row to its episode's last row: [N] float64."""
    ends = (dataset.terminated | dataset.truncated).tolist()
    result, following = np.empty(len(dataset)), 0.0
    for i, reward in zip(range(len(dataset) - 1, -1, -1), reversed(dataset.rewards.tolist()), strict=True):
        following = reward + (0.0 if ends[i] else discount * following)
        result[i] = following
    return result


def episode_counts(episodes: int, replicates: int, seed: int = 0) -> np.ndarray:
    """How often each fit draws each episode: [1 + replicates, E] float32; fit 0 draws each once."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(episodes, np.full(episodes, 1 / episodes), replicates)
    return np.concatenate([np.ones((1, episodes)), drawn]).astype(np.float32)


def interval(value: float, error: float, degrees: int, confidence: float) -> tuple[float, float]:
    """Student's interval around `value` with standard error `error`.

    Percentiles of so few replicates would promise too much: the range of eight covers 84 % at most.
    """
    half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    return value - half, value + half


def behaviour(dataset: Dataset, to_go: np.ndarray, discount: float, confidence: float) -> Behaviour:
    """The data's own policy, from the returns to go [N]."""
    returns, cut = to_go[dataset.episode_starts], dataset.truncated[dataset.episode_ends]
    error = float(returns.std(ddof=1)) / len(returns) ** 0.5
    low, high = interval(float(returns.mean()), error, len(returns) - 1, confidence)
    left = np.where(cut, discount ** dataset.episode_lengths.astype(np.float64), 0.0).mean()
    bound = left * float(np.abs(dataset.rewards).max()) / (1 - discount)
    return Behaviour(float(returns.mean()), low, high, float(returns.max()), int(cut.sum()), bound)


def possible_values(dataset: Dataset, discount: float) -> tuple[float, float]:
    """The lowest and the highest value that the data's rewards allow."""
    ends = 1 / (1 - discount)
    return min(0.0, float(dataset.rewards.min())) * ends, max(0.0, float(dataset.rewards.max())) * ends


class Evaluator:
    """Evaluates policies on one dataset."""

    def __init__(
        self,
        dataset: Dataset,
        preparation: Preparation,
        options: OfflineEvaluation,
        discount: float,
        settings: dict[str, Any],
    ):
        """`preparation` is the policy's, for observations; `settings` change FQE's hyper-parameters."""
        self.dataset, self.options, self.discount, self.settings = dataset, options, discount, settings
        to_go = returns_to_go(dataset, discount)
        self.behaviour = behaviour(dataset, to_go, discount, options.confidence)
        self.possible = possible_values(dataset, discount)
        self.scale = FITTED_SCALE / (float(np.abs(to_go).max()) or FITTED_SCALE)
        self.rows = prepared_rows(dataset, replace(preparation, reward_scale=self.scale, reward_bias=0.0))
        counts = episode_counts(len(dataset.episode_starts), options.replicates)  # [1 + K, E]
        self.fits = len(counts)
        self.weights = {"weight": jnp.asarray(np.repeat(counts, dataset.episode_lengths, axis=1))}
        self.start_weights = {"weight": jnp.asarray(counts)}
        self.starts: Batch = jax.tree.map(lambda x: x[dataset.episode_starts], self.rows)
        sample = np.random.default_rng(0).integers(0, len(dataset), min(PROBE_ROWS, len(dataset)))
        self.probe: Batch = jax.tree.map(lambda x: np.asarray(x[sample]), self.rows)
        others = np.asarray(self.rows.action[np.random.default_rng(1).integers(0, len(dataset), len(sample))])
        self.spread = float(np.abs(self.probe.action - others).mean())

    def algorithm(self, policy: Algorithm) -> FQE:
        """The fit of a policy."""
        return FQE(policy, stochastic=self.options.stochastic, discount=self.discount, **self.settings)

    def updates(self, policy: Algorithm) -> int:
        """Of every fit."""
        if self.options.updates is not None:
            return self.options.updates
        growth = 1 / (self.algorithm(policy).target_update_rate * (1 - self.discount))
        return max(FEWEST_UPDATES, round(TIME_CONSTANTS * growth))

    def evaluate(self, policy: Algorithm, models: Models, seed: int, quiet: bool = False) -> Estimate:
        """`policy` with what it exported, `models` (without a seed axis). Raises Diverged instead of a false value."""
        if policy.policy_kind == "sequence":
            raise UserError("a policy that acts on an episode's history has no Q of a single step that could be fitted")
        algorithm, spec = self.algorithm(policy), Spec(self.dataset.observation_dim, self.dataset.action_dim)
        keys = make_keys(tuple(range(self.fits)), 0)
        copies = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], self.fits, 0), models)
        state = initial_state(algorithm, copies, spec, keys)
        acting = jax.tree.map(lambda x: x[0], state.policy)
        worker = OfflineWorker(Program(algorithm, "offline", spec), state, self.weights, keys, self.rows)
        total, course = self.updates(policy), []
        with Progress(f"fitting Q of seed {seed}, {self.fits} fits", total, "updates", 0, quiet) as progress:
            for point in np.linspace(0, total, COURSE_POINTS + 1).astype(int).tolist()[1:]:
                while worker.step < point:
                    worker.advance(point, lambda: False)
                    progress.at(worker.step)
                    self._check(worker.metrics.drain()["critic_1_mean"] / self.scale, HOPELESS, seed, worker.step)
                course.append(self._values(algorithm, worker.state))
                progress.say(f"value {course[-1][0]:.4g}")
        values = course[-1]
        self._check(values, 1.0, seed, worker.step)
        low, high = interval(
            float(values[0]), float(values[1:].std(ddof=1)), self.options.replicates - 1, self.options.confidence
        )
        away = np.abs(np.asarray(act_greedily(policy, acting, self.probe.obs)) - self.probe.action).mean(1)  # [rows]
        make = partial(
            Estimate,
            seed=seed,
            value=float(values[0]),
            low=low,
            high=high,
            replicates=tuple(values[1:].tolist()),
            course=tuple(float(v[0]) for v in course),
            action_distance=float(away.mean()),
            far_fraction=float((away > self.spread).mean()),
        )
        return make(warnings=tuple(self._warnings(make(warnings=()))))

    def report(self, policy: Algorithm, estimates: list[Estimate]) -> OfflineReport:
        """Estimates of one kind of policy, with what they are to be compared with."""
        return OfflineReport(
            dataset=self.dataset.source or "in memory",
            transitions=len(self.dataset),
            episodes=len(self.dataset.episode_starts),
            discount=self.discount,
            updates=self.updates(policy),
            confidence=self.options.confidence,
            stochastic=self.options.stochastic,
            action_spread=self.spread,
            behaviour=self.behaviour,
            estimates=tuple(estimates),
        )

    def _values(self, algorithm: FQE, state: Any) -> np.ndarray:
        """Every fit's estimate [1 + K], in units of raw rewards."""
        found = diagnose(algorithm, state, self.start_weights, self.starts)["estimate"]
        return np.asarray(found, np.float64) / self.scale

    def _check(self, values: np.ndarray, factor: float, seed: int, step: int) -> None:
        """Raise Diverged if a fit's value is none that the data's rewards allow, `factor` times as far."""
        lowest, highest = self.possible
        slack = SLACK * max(highest - lowest, FITTED_SCALE / self.scale)  # all rewards may be 0
        bad = ~((values >= factor * (lowest - slack)) & (values <= factor * (highest + slack)))
        if bad.any():
            raise Diverged(
                f"seed {seed}: the fit diverged by update {step:,}: a value of {values[bad][0]:.4g}, where the data's "
                f"rewards allow {lowest:.4g} to {highest:.4g}; there is no estimate. The policy acts too far from "
                "these data: evaluate it on data nearer to it (--dataset), or with a lower --discount"
            )

    def _warnings(self, estimate: Estimate) -> list[str]:
        """What speaks against an estimate."""
        found, episodes = [], len(self.dataset.episode_starts)
        if estimate.action_distance > self.spread:
            found.append(
                "its actions are further from the data's than those of unrelated states are: the value is extrapolated"
            )
        if estimate.value > self.behaviour.best + self.behaviour.cut_bound:
            found.append("the value is above that of the best episode in the data: it is probably too high")
        moved = abs(estimate.course[-1] - estimate.course[-1 - COURSE_POINTS // 5])
        if moved > max(SETTLED * abs(estimate.value), float(np.std(estimate.replicates))):
            found.append("the value still moves: give more --steps")
        if episodes < 30:
            found.append(f"only {episodes} episodes: the interval is not to be relied on")
        return found


def check_data(dataset: Dataset, spec: Spec, low: np.ndarray, high: np.ndarray) -> None:
    """Raise UserError if a policy with action bounds `low`, `high` [A] cannot be evaluated on the dataset."""
    name = dataset.source.partition("?")[0] or "the dataset"
    if (dataset.observation_dim, dataset.action_dim) != tuple(spec):
        raise UserError(
            f"{name} has {dataset.observation_dim} observations and {dataset.action_dim} actions, the policy "
            f"{spec.observation_dim} and {spec.action_dim}: choose data of the task that it was trained for"
        )
    if not (np.allclose(dataset.action_low, low) and np.allclose(dataset.action_high, high)):
        raise UserError(
            f"{name} has actions between {_shown(dataset.action_low)} and {_shown(dataset.action_high)}, the policy "
            f"between {_shown(low)} and {_shown(high)}: give data with the policy's action bounds"
        )
    if len(dataset.episode_starts) < 2:
        raise UserError(f"{name} holds a single episode: a bootstrap over episodes needs at least 2")


def _shown(bounds: np.ndarray) -> str:
    return "(" + ", ".join(f"{x:g}" for x in bounds.tolist()) + ")"


def report_lines(report: OfflineReport) -> list[str]:
    """What a person is told."""
    b = report.behaviour
    share = f"{100 * report.confidence:g} %"
    lines = [
        f"value on {report.dataset} ({report.transitions:,} transitions, {report.episodes:,} "
        f"episodes), discounted at {report.discount:g}, with {share} interval",
        _line("behaviour policy, its mean discounted return", b.value, b.low, b.high),
    ]
    for e in report.estimates:
        lines.append(_line(f"policy of seed {e.seed}, fitted Q evaluation", e.value, e.low, e.high))
        lines.append(
            f"    its actions lie {e.action_distance:.2f} from the data's in the same state (range 2); unrelated "
            f"ones lie {report.action_spread:.2f} apart, and {100 * e.far_fraction:.0f} % of its actions further"
        )
        lines += [f"    warning: {text}" for text in e.warnings]
    if b.cut_bound > SETTLED * abs(b.value):
        lines.append(
            f"  {b.cut_episodes:,} episodes were cut off (time limit, end of the log): what would have followed is not "
            f"in the behaviour policy's value and could change it by up to {b.cut_bound:.4g}"
        )
    lines.append(
        "Values are sums of discounted raw rewards from the data's initial states: compare them with each other, not "
        "with the undiscounted returns of 'segue evaluate'.\n"
        f"The interval tells how much chance in the data (and in the fit) could move the value, from "
        f"{len(report.estimates[0].replicates)} fits to resampled episodes.\nIt does not cover the error of a policy "
        "that does what the data do not show, nor the fit's own bias: no interval from data alone can."
    )
    return lines


def _line(name: str, value: float, low: float, high: float) -> str:
    return f"  {name:<46}{value:>10.4g}   [{low:.4g}, {high:.4g}]"


