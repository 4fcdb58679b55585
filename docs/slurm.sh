#!/bin/bash
# Training on two nodes of eight GPUs, and labelling image-text pairs as a job array. Put your own partition and paths.
#
#   sbatch docs/slurm.sh configs/lvis_base_rn50.yaml
#   sbatch --nodes 1 --array 0-63 --export ALL,RUN=runs/lvis_base_rn50 docs/slurm.sh label
#
#SBATCH --job-name ovd
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 96
#SBATCH --time 24:00:00
#SBATCH --signal TERM@300
#SBATCH --requeue
# Five minutes before its time is up the job gets SIGTERM: the ranks finish the step, save and exit with 143. Requeued, it
# goes on from there: --resume starts anew where there is nothing to resume.
set -euo pipefail

if [ "$1" = label ]; then
    # Tasks take the shards that nobody has done yet; a killed one is done again, with the same bytes.
    exec srun --ntasks 1 .venv/bin/python tools/pseudo_label.py "$RUN" --pairs data/cc12m --queries nouns \
        --output data/cc12m_labels --rank "$SLURM_ARRAY_TASK_ID" --world "$SLURM_ARRAY_TASK_COUNT"
fi
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun .venv/bin/torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 \
    --rdzv-backend c10d --rdzv-endpoint "$head_node:29500" --rdzv-id "$SLURM_JOB_ID" \
    tools/train.py "$1" --resume "${@:2}"
