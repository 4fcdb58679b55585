#!/bin/bash
# All that docs/results.md wants from a GPU; not run on one yet: bench/gpu.sh [python]
set -euo pipefail
python=${1:-python}
$python bench/train_speed.py configs/lvis_base_convnext_b.yaml --steps 500
$python bench/train_speed.py configs/lvis_base_convnext_b.yaml train.compile=true --steps 100
$python bench/compile.py --device cuda --config configs/lvis_base_convnext_b.yaml --size 800
$python bench/experts.py --device cuda
$python bench/experts.py --device cuda --config configs/lvis_base_rn50.yaml --size 800
$python bench/pseudo_label.py --device cuda
$python tools/quickstart.py
