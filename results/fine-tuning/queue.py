"""The runs of the table in README.md, one worker a core; goes on where it was interrupted.

    python results/fine-tuning/queue.py runs/tuning 0 1        # folder, cores
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

DATASETS = ("hopper-medium", "hopper-medium-replay")
SEEDS = ("0", "1")
STEPS = "30000"
COMMON = ["--online-eval-interval", "3000", "--eval-episodes", "10", "--quiet"]
OFFLINE = {  # the policies that everything goes on from; two seeds each, side by side in one process
    "td3_bc": ["--steps", "100000", "--critic-layer-norm"],
    "iql": ["--steps", "50000"],
    "cql": ["--preset", "fast", "--steps", "12000"],
}
# Label -> (policy, method, options). Shorter than the papers' where a method has phases on the dataset before it goes
# online, and fewer updates a step where they make ten or twenty: two cores have an hour. README.md says which.
HANDOVER = ["--reevaluation-updates", "20000", "--alignment-updates", "20000"]
FEWER = ["--updates-per-step", "2", "--policy-update-interval", "2"]
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "td3_bc": ("td3_bc", "td3_bc", ["--warmup-steps", "1000"]),
    "td3": ("td3_bc", "td3", ["--replay", "half", "--warmup-steps", "1000"]),
    "proto_td3": ("td3_bc", "proto_td3", []),
    "iql": ("iql", "iql", []),
    "baq_iql": ("iql", "baq_iql", ["--behaviour-updates", "20000"]),
    "pex-iql": ("iql", "pex", []),
    "uni_o4": ("iql", "uni_o4", ["--reevaluation-updates", "20000"]),
    "ppo": ("iql", "ppo", []),
    "o2ppo": ("iql", "o2ppo", ["--reevaluation-updates", "20000"]),
    "sac": ("cql", "sac", ["--replay", "half", "--warmup-steps", "1000"]),
    "off2on": ("cql", "off2on", []),
    "proto_sac": ("cql", "proto_sac", []),
    "aca": ("cql", "aca", ["--baseline-updates", "10000"]),
    "baq_cql": ("cql", "baq_cql", ["--preset", "fast", "--behaviour-updates", "20000"]),
    "cql": ("cql", "cql", []),
    "ssar": ("td3_bc", "td3_bc_ssar", ["--warmup-steps", "1000"]),
    "suf-td3_bc": ("td3_bc", "suf", ["--updates-per-step", "4", "--policy-update-interval", "8"]),
    "suf-iql": ("iql", "suf", ["--updates-per-step", "4", "--policy-update-interval", "8"]),
    "suf-cql": ("cql", "suf", ["--updates-per-step", "4", "--policy-update-interval", "8"]),
    "so2-iql": ("iql", "so2", ["--preset", "fast", "--updates-per-step", "4", "--policy-update-interval", "4"]),
    "so2-cql": ("cql", "so2", ["--preset", "fast", "--updates-per-step", "4", "--policy-update-interval", "4"]),
    "rlpd": ("td3_bc", "rlpd", ["--preset", "fast"]),
    "wsrl": ("cql", "wsrl", []),
    "pex-td3_bc": ("td3_bc", "pex", []),
    "pex-cql": ("cql", "pex", []),
    "o2td3": ("td3_bc", "o2td3", HANDOVER),
    "o2sac": ("cql", "o2sac", HANDOVER),
    "baq_iql-Q": ("iql", "baq_iql", ["--behaviour-updates", "40000", "--sampling", "uniform"]),
    "baq_iql-S": ("iql", "baq_iql", ["--behaviour-updates", "40000", "--no-use-weight"]),
}
OWN = {  # those with an offline phase of their own
    "odt": ("odt", ["--preset", "fast", "--steps", "2000"]),
    "famo2o_iql": ("famo2o_iql", ["--steps", "30000"]),
    "famo2o_cql": ("famo2o_cql", ["--steps", "10000", "--num-sampled-actions", "4"]),
}


def segue(core: str, *words: str) -> int:
    """The command on one core."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": "/tmp/segue-programs"}
    command = ["taskset", "-c", core, sys.executable, "-m", "segue.cli.main", *words]
    return subprocess.run(command, env=environment, check=False).returncode


def jobs(root: Path) -> list[tuple[str, Path, list[str]]]:
    """(dataset, folder, words) in the order in which they matter."""
    found = []
    for dataset in DATASETS:
        for method, options in OFFLINE.items():
            out = root / dataset / "offline" / method
            words = ["train", method, "--dataset", f"segue/{dataset}", *options, "--seeds", *SEEDS]
            found.append((dataset, out, [*words, "--quiet", "--out", str(out)]))
        for seed in SEEDS:
            for label, (parent, method, options) in RUNS.items():
                out = root / dataset / label / f"seed-{seed}"
                words = ["finetune", str(root / dataset / "offline" / parent), "--method", method, "--steps", STEPS]
                found.append((dataset, out, [*words, *options, "--seeds", seed, *COMMON, "--out", str(out)]))
            for label, (method, options) in OWN.items():
                out = root / dataset / label / f"seed-{seed}"
                words = ["run", method, "--dataset", f"segue/{dataset}", "--online-steps", STEPS]
                found.append((dataset, out, [*words, *options, "--seeds", seed, *COMMON, "--out", str(out)]))
    return [job for job in found if not (job[1].parent / "summary.json").is_file()]  # not what was run with both seeds


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
            _, out, words = job
            if (out / "config.json").is_file():
                words = ["resume", str(out), "--quiet"]
            print(core, out, "->", segue(core, *words), flush=True)

    workers = [threading.Thread(target=work, args=(core,)) for core in cores]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def ready(job: tuple[str, Path, list[str]]) -> bool:
    """Its policy is there."""
    words = job[2]
    return words[0] != "finetune" or (Path(words[1]) / "summary.json").is_file()


if __name__ == "__main__":
    main()
