#!/bin/bash
# Run everything that the docs need from a GPU in one job: tests, the marks of bench/rows.py, and the quick start.
#
#   bench/gpu.sh                     # every part
#   bench/gpu.sh mfu detect          # some of them
#   bench/gpu.sh checks first        # what only a GPU shows, before anything is timed
#
# A part that fails or exceeds its time does not stop the others. Logs are in bench/results/gpu/, results in
# bench/results/*.json and afterwards in docs/benchmarks.*. PYTHON names the interpreter (default: python).
set -uo pipefail
export PYTHON=${PYTHON:-python}
wanted=" $* "
logs=bench/results/gpu
mkdir -p $logs
failed=()

part() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  [[ $wanted == "  " || $wanted == *" $name "* ]] || return 0
  timeout "$limit" "$@" > "$logs/$name.log" 2>&1
  local status=$?
  echo "== $name: exit status $status after $((SECONDS - start)) s"
  tail -n 3 "$logs/$name.log" | cut -c 1-1500
  [[ $status == 0 ]] || failed+=("$name")
}

bench() { part "$1" "$2" "$PYTHON" "bench/$3.py" --device cuda "${@:4}"; }

convnext=configs/lvis_base_convnext_b.yaml
bench checks 60 gpu_checks
part first 120 "$PYTHON" -m pytest -m "not slow" --verbose --tb short -p no:cacheprovider tests/kernels \
  tests/model/test_postprocess_on_gpu.py tests/model/test_crop_encoder.py tests/engine/test_graphed.py
part tests 300 "$PYTHON" -m pytest -n "$(nproc)" --dist worksteal -m "not slow" --verbose --tb short -p no:cacheprovider
bench train_step 90 train_step
bench detect 45 detect
bench mfu 60 mfu
bench mfu_convnext 60 mfu --config $convnext
bench loss_memory 60 loss_memory --points 213488 --classes 100 1203
bench vocabulary 45 vocabulary
bench postprocess 30 postprocess --images 16
bench optimizer 30 optimizer
bench pseudo_label 45 pseudo_label
bench step_memory 60 step_memory
part train_speed 60 "$PYTHON" bench/train_speed.py configs/lvis_base_rn50.yaml data.workers=14 --steps 60
bench second_look 45 second_look
bench experts 60 experts --config configs/lvis_base_rn50.yaml --size 800
part quickstart 180 bash -c '"$PYTHON" tools/quickstart.py && "$PYTHON" bench/quickstart.py'
"$PYTHON" bench/join.py --only-join
[[ ${#failed[@]} == 0 ]] || { echo "failed: ${failed[*]}"; exit 1; }
