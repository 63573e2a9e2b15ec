#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under nine minutes: build, tests, benchmarks.
#   bash benchmarks/gpu_suite.sh OUT
# Small result files go to OUT. PYTHON names an interpreter that has a CUDA torch, triton,
# transformers, pytest, scipy and matplotlib; nothing is installed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?usage: bash benchmarks/gpu_suite.sh OUT}")
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/python:$PWD/tests:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"

capability=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
export CUDA_ARCHITECTURES=$capability FORCE_CUDA=1
failed=0
step() {  # NAME SECONDS COMMAND...: run it within a bound, keep the end of its log
  local name=$1 bound=$2
  shift 2
  echo "== $name"
  timeout "$bound" "$@" >"$out/$name.log" 2>&1 || { echo "$name failed ($?)"; failed=1; }
  tail -n 200 "$out/$name.log" >"$out/$name.tail" && mv "$out/$name.tail" "$out/$name.log"
  tail -n 5 "$out/$name.log"
}

step build 100 "$python" setup.py build_ext --inplace
step tests 150 "$python" -m pytest -q -m gpu tests/test_gpu.py
step triton 60 env FEDSPZO_BACKEND=triton "$python" -m pytest -q tests/test_triton.py
if command -v compute-sanitizer >/dev/null; then
  step sanitizer 60 compute-sanitizer --error-exitcode 9 "$python" -m pytest -q -m gpu \
    tests/test_gpu.py -k "unaligned or launch_holds"
else
  echo "no compute-sanitizer on the path"
fi
step benchmark 160 "$python" benchmarks/gpu.py "$out"
exit $failed
