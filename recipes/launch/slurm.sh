#!/bin/bash
# A run on several nodes under SLURM; continued by itself after a pre-emption or the time limit.
#
#     sbatch recipes/launch/slurm.sh RECIPE RUN [--group.prompts 256 ...]
#
# RUN, the run's folder, lies where all nodes see it. 120 s before the end of its time the job is
# told: it finishes its step, saves a checkpoint, and is queued again. Pre-empted jobs are told and
# queued again by SLURM itself (--requeue; PreemptMode=REQUEUE with a GraceTime of a minute or two).
#SBATCH --job-name=rl-reasoner
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
recipe=$1 run=$2
shift 2
if [ -f "$run/recipe.yaml" ]; then
  what=(--resume "$run")
else
  what=("$recipe" --run.folder "$run" "$@")
fi
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100

told=
trap 'told=1; kill -TERM "$step"' TERM
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" --max-restarts 0 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29500}" \
  --module rl_reasoner.cli train "${what[@]}" &
step=$!
wait "$step"
code=$?
if [ -n "$told" ]; then
  wait "$step" # the first wait ended with the signal
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
