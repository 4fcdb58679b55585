#!/bin/bash
# Training on two nodes of eight GPUs, and labeling image-text pairs as a job array of one GPU each. Put your own
# partition and paths.
#
#   sbatch docs/slurm.sh configs/lvis_base_rn50.yaml
#   sbatch --nodes 1 --gpus-per-node 1 --cpus-per-task 12 --array 0-63 \
#       --export ALL,RUN=runs/lvis_base_rn50,WORLD=64 docs/slurm.sh label
#
#SBATCH --job-name ovd
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 96
#SBATCH --time 24:00:00
#SBATCH --signal TERM@300
#SBATCH --requeue
set -euo pipefail
# srun takes no cores from sbatch in Slurm 22.05 to 23.02, hence its --cpus-per-task below.

if [ "$1" = label ]; then
    # Task N takes the shards number N, N + WORLD, ... and skips those that are done; failed tasks are started again
    # with --array 3,17 and the same WORLD, and their files are byte-identical.
    exec srun --ntasks 1 --cpus-per-task "$SLURM_CPUS_PER_TASK" \
        .venv/bin/ovd label-pairs "$RUN" --pairs data/cc12m --queries nouns --templates none \
        --threads "$SLURM_CPUS_PER_TASK" --output data/cc12m_labels \
        --rank "$SLURM_ARRAY_TASK_ID" --world "$WORLD"
fi

# Five minutes before its time is up the job gets SIGTERM: the ranks finish the step, save and exit with 143. Then the
# job queues up again and goes on from there; --resume starts anew where there is nothing to resume.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280  # torchrun would give the ranks 30 seconds
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
started=$SECONDS
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" .venv/bin/torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 \
    --rdzv-backend c10d --rdzv-endpoint "$head_node:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m ovd train "$1" --resume "${@:2}" && exit 0
# torchrun's own exit code does not say whether a signal stopped it: a job that had an hour is worth another.
[ $((SECONDS - started)) -gt 3600 ] && scontrol requeue "$SLURM_JOB_ID"
exit 1
