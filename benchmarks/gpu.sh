#!/usr/bin/env bash
# All for which a GPU is needed, in one go on a bare machine: what is to be installed, the tests marked gpu, the kernels,
# single pairs, batches, trainings. Each part that ended is left out the next time; `rm -r benchmarks/work/gpu` begins
# afresh. A part that cannot run here is skipped by name, one that fails is named at the end, and the others run all the
# same.
#
#   benchmarks/gpu.sh [DATA]        DATA: the folder of OASIS, for pairs of real people; without it, the demonstration's
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] && export STEPWARP_DATA=$1
. benchmarks/parts.sh gpu

make .venv/ready-dev || exit 1
if ! .venv/bin/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "skipped: tests, kernels, pairs, flights. torch sees no CUDA device."
    exit 0
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$done/card.txt"
# The contract of each kernel first, since all else may be wrong where it does not hold.
part kernels-contract .venv/bin/pytest -m gpu tests/kernels
part tests .venv/bin/pytest -m gpu --ignore tests/kernels
part kernels .venv/bin/python benchmarks/kernels.py --device cuda
part pairs .venv/bin/python benchmarks/gpu_pairs.py
part flights .venv/bin/python benchmarks/gpu_pairs.py --in-flight
part training .venv/bin/python benchmarks/training_throughput.py --device cuda
conclude
