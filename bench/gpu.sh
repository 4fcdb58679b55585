#!/bin/bash
# All that docs/results.md wants from a GPU; not run as a whole yet: bench/gpu.sh [python]
set -euo pipefail
python=${1:-python}
$python -m pytest -q tests/kernels tests/engine/test_graphed.py
$python bench/train_step.py --device cuda
$python bench/detect.py --device cuda
$python bench/mfu.py --device cuda
$python bench/mfu.py --device cuda --config configs/lvis_base_convnext_b.yaml
$python bench/loss_memory.py --device cuda --points 213488
$python bench/train_speed.py configs/lvis_base_rn50.yaml data.workers=14 --steps 60
$python bench/second_look.py --device cuda
$python bench/experts.py --device cuda
$python bench/experts.py --device cuda --config configs/lvis_base_rn50.yaml --size 800
$python bench/pseudo_label.py --device cuda
$python tools/quickstart.py
