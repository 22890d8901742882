"""The runs of the table in README.md, one worker a core; goes on where it was interrupted.

    python results/fine-tuning/queue.py runs/tuning 0 1        # folder, cores

What collect.py has kept under runs/ is not run again, the offline policies included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

KEPT = Path(__file__).parent / "runs"
DATASETS = ("hopper-medium", "hopper-medium-replay")
SEEDS = ("0", "1")  # side by side in one process
STEPS = "30000"
DIVERGED = 3  # exit code of the command
COMMON = ["--online-eval-interval", "3000", "--eval-episodes", "10", "--quiet"]
# Networks of half the papers' width: a quarter of the arithmetic, so that two cores can do it in an afternoon.
WIDTH = ["--hidden-sizes", "128", "128"]
OFFLINE = {  # the policies that everything goes on from
    "td3_bc": [*WIDTH, "--steps", "100000", "--critic-layer-norm"],
    "cql": [*WIDTH, "--preset", "fast", "--steps", "25000"],
    "iql": [*WIDTH, "--steps", "100000"],
}
# Label -> (policy, method, options). Shorter than the papers' where a method has phases on the dataset before it goes
# online, and fewer updates a step where they make ten or twenty. README.md says which.
HANDOVER = ["--reevaluation-updates", "20000", "--alignment-updates", "20000"]
VALUE = ["--reevaluation-updates", "20000", "--value-hidden-sizes", "128", "128"]
BEHAVIOUR = ["--behaviour-updates", "20000", "--behaviour-hidden-sizes", "128", "128"]
FOUR = ["--updates-per-step", "4", "--policy-update-interval", "8"]
BLURRED = [*WIDTH, "--preset", "fast", "--updates-per-step", "4", "--policy-update-interval", "4"]
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "td3_bc": ("td3_bc", "td3_bc", ["--warmup-steps", "1000"]),
    "baq_cql": ("cql", "baq_cql", ["--preset", "fast", *WIDTH, *BEHAVIOUR]),
    "td3": ("td3_bc", "td3", ["--replay", "half", "--warmup-steps", "1000"]),
    "proto_td3": ("td3_bc", "proto_td3", []),
    "sac": ("cql", "sac", ["--replay", "half", "--warmup-steps", "1000"]),
    "iql": ("iql", "iql", []),
    "off2on": ("cql", "off2on", ["--ratio-hidden-sizes", "128", "128"]),
    "baq_iql": ("iql", "baq_iql", BEHAVIOUR),
    "proto_sac": ("cql", "proto_sac", []),
    "pex-iql": ("iql", "pex", WIDTH),
    "aca": ("cql", "aca", [*WIDTH, "--baseline-updates", "10000"]),
    "uni_o4": ("iql", "uni_o4", VALUE),
    "ppo": ("iql", "ppo", ["--value-hidden-sizes", "128", "128"]),
    "rlpd": ("td3_bc", "rlpd", ["--preset", "fast", *WIDTH]),
    "wsrl": ("cql", "wsrl", []),
    "so2-cql": ("cql", "so2", BLURRED),
    "so2-iql": ("iql", "so2", BLURRED),
    "suf-td3_bc": ("td3_bc", "suf", FOUR),
    "suf-cql": ("cql", "suf", FOUR),
    "suf-iql": ("iql", "suf", FOUR),
    "cql": ("cql", "cql", []),
}
OWN = {  # those with an offline phase of their own; ODT makes its own policy from any
    "odt": ("odt", ["--preset", "fast", "--steps", "2000"]),
    "famo2o_iql": ("famo2o_iql", [*WIDTH, "--steps", "30000"]),
    "famo2o_cql": ("famo2o_cql", [*WIDTH, "--critic-hidden-sizes", "128", "128", "--steps", "10000",
                                  "--num-sampled-actions", "4"]),
}
MORE: dict[str, tuple[str, str, list[str]]] = {  # other ways of those, and methods that have tables of their own
    "pex-td3_bc": ("td3_bc", "pex", WIDTH),
    "pex-cql": ("cql", "pex", WIDTH),
    "baq_iql-Q": ("iql", "baq_iql", [*BEHAVIOUR, "--sampling", "uniform"]),
    "baq_iql-S": ("iql", "baq_iql", [*BEHAVIOUR, "--no-use-weight"]),
    "o2ppo": ("iql", "o2ppo", VALUE),
    "o2td3": ("td3_bc", "o2td3", HANDOVER),
    "o2sac": ("cql", "o2sac", HANDOVER),
    "ssar": ("td3_bc", "td3_bc_ssar", ["--warmup-steps", "1000"]),
}
DEAR = ("baq_cql", "cql", "famo2o_cql", "odt")  # a quarter of an hour or more each, others take three to six minutes
CHEAP = [label for label in RUNS | OWN if label not in DEAR]
ORDER = [(dataset, label) for labels in (CHEAP, DEAR, MORE) for dataset in DATASETS for label in labels]


def segue(core: str, out: Path, *words: str) -> int:
    """The command on one core; what it says of a run that diverged stays in the run's folder."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": "/tmp/segue-programs"}
    command = ["taskset", "-c", core, sys.executable, "-m", "segue.cli.main", *words]
    done = subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode == DIVERGED:
        (out / "diverged.txt").write_text(done.stderr)
    return done.returncode


def jobs(root: Path) -> list[tuple[Path, list[str]]]:
    """(folder, words) in the order in which they matter."""
    policies, methods = [], []
    for dataset in DATASETS:
        for method, options in OFFLINE.items():
            if (KEPT / dataset / "offline" / method / "models").is_dir():
                continue
            policies.append((root / dataset / "offline" / method, ["train", method, "--dataset", f"segue/{dataset}",
                             *options, "--eval-interval", "20000", "--quiet"]))  # fmt: skip
    for dataset, label in ORDER:
        if label in OWN:
            method, options = OWN[label]
            words = ["run", method, "--dataset", f"segue/{dataset}", "--online-steps", STEPS]
        else:
            parent, method, options = (RUNS | MORE)[label]
            kept, made = (base / dataset / "offline" / parent for base in (KEPT, root))
            policy = kept if (kept / "models").is_dir() else made
            words = ["finetune", str(policy), "--method", method, "--steps", STEPS]
        if not (KEPT / dataset / label).is_dir():
            methods.append((root / dataset / label, [*words, *options, *COMMON]))
    todo = [one for one in (*policies, *methods) if not (one[0] / "diverged.txt").is_file()]
    return [(out, [*words, "--seeds", *SEEDS, "--out", str(out)]) for out, words in todo]


def main() -> None:
    """Every job once."""
    root, cores = Path(sys.argv[1]), sys.argv[2:]
    waiting, lock = jobs(root), threading.Lock()

    def work(core: str) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                job = next((one for one in waiting if ready(one)), None)
                if job is not None:
                    waiting.remove(job)
            if job is None:  # its policy is under way
                time.sleep(5)
                continue
            out, words = job
            if (out / "config.json").is_file():
                words = ["resume", str(out), "--quiet"]
            print(core, out, "->", segue(core, out, *words), flush=True)

    workers = [threading.Thread(target=work, args=(core,)) for core in cores]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def ready(job: tuple[Path, list[str]]) -> bool:
    """Its policy is there."""
    words = job[1]
    return words[0] != "finetune" or (Path(words[1]) / "summary.json").is_file()


if __name__ == "__main__":
    main()
