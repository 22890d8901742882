#!/usr/bin/env bash
# The runs behind results/hopper-medium: every job that no other worker has claimed, one after another.
# Start one worker a core:  taskset -c 0 results/hopper-medium/run.sh & taskset -c 1 results/hopper-medium/run.sh &
set -u
out=${OUT:-runs/hopper-medium}
mkdir -p "$out/claims"
job() { # NAME SEED METHOD OPTIONS...
  name=$1-seed$2; seed=$2; method=$3; shift 3
  mkdir "$out/claims/$name" 2>/dev/null || return 0
  if [ -e "$out/$name/config.json" ]; then segue resume "$out/$name"; return; fi
  segue run "$method" --dataset segue/hopper-medium --steps 150000 --online-steps 30000 --seeds "$seed" \
    --replay part --online-action-noise 0 --critic-layer-norm True "$@" --out "$out/$name"
}
for seed in 0 1; do
  job td3_bc $seed td3_bc
  job ssar_masked $seed td3_bc_ssar --mask-regularizer True
  job ssar_unmasked $seed td3_bc_ssar --mask-regularizer False
done
for seed in 0 1; do
  job td3_bc_no_layer_norm $seed td3_bc --critic-layer-norm False
done
