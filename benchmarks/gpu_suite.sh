#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under eight minutes.
#   bash benchmarks/gpu_suite.sh --build DIR             the libraries, beforehand; needs no GPU
#   bash benchmarks/gpu_suite.sh OUT [--libraries DIR]   the suite
#   bash benchmarks/gpu_suite.sh --dry OUT               all of its code, without a GPU
# PYTHON names an interpreter with a CUDA torch and transformers. Nothing is installed.
# What it measures and leaves in OUT: benchmarks/results/gpu.md.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
if [[ ${1:-} == --build ]]; then
  exec "$python" -m gpu.libraries "${2:?usage: bash benchmarks/gpu_suite.sh --build DIR}"
fi
exec "$python" -m gpu.suite "$@"
