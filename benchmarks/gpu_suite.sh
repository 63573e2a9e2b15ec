#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under nine minutes: build, tests, benchmarks.
#   bash benchmarks/gpu_suite.sh OUT
# Small result files go to OUT. PYTHON names an interpreter that has a CUDA torch and transformers;
# with pytest it runs the tests, with triton and matplotlib more is measured and drawn. Nothing is
# installed. Each step has a bound, and none starts after the ninth minute.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${1:?usage: bash benchmarks/gpu_suite.sh OUT}"
out=$(realpath -m "$1")
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/python:$PWD/tests:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"

capability=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
export CUDA_ARCHITECTURES=$capability FORCE_CUDA=1
failed=0
step() {  # NAME SECONDS COMMAND...: run it within a bound, keep the end of its log
  local name=$1 bound=$2 left=$((530 - SECONDS))
  shift 2
  bound=$((bound < left ? bound : left))
  if ((bound <= 0)); then
    echo "== $name: no time left" && failed=1
    return
  fi
  echo "== $name"
  timeout "$bound" "$@" >"$out/$name.log" 2>&1 || { echo "$name failed ($?)"; failed=1; }
  tail -n 200 "$out/$name.log" >"$out/$name.tail" && mv "$out/$name.tail" "$out/$name.log"
  tail -n 5 "$out/$name.log"
}

step build 120 "$python" setup.py build_ext --inplace
if "$python" -c 'import pytest' 2>/dev/null; then
  step tests 150 "$python" -m pytest -q -m gpu tests/test_gpu.py
else
  echo "no pytest: no tests but the benchmark's own check of the bits" && failed=1
fi
step benchmark 240 "$python" benchmarks/gpu.py "$out"
if "$python" -c 'import pytest, triton' 2>/dev/null; then
  step triton 150 env FEDSPZO_BACKEND=triton "$python" -m pytest -q tests/test_triton.py
fi
if command -v compute-sanitizer >/dev/null; then
  step sanitizer 90 compute-sanitizer --error-exitcode 9 "$python" -m pytest -q -m gpu \
    tests/test_gpu.py -k "unaligned or launch_holds"
else
  echo "no compute-sanitizer on the path"
fi
exit $failed
