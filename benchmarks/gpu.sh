#!/usr/bin/env bash
# The benchmarks of speed on a machine with a GPU, without ROS: Qwen3-VL-2B's shape with random weights in NF4.
# Writes OUT/<name>.json for each and goes on when a target is missed; exit code 1 when one was, 2 when one
# could not run.
#
#   benchmarks/gpu.sh [OUT]                          default OUT: benchmarks/results/gpu
#   BENCHES='overlap decode' benchmarks/gpu.sh       only these
#   SEGMENTS=100 ARGS=--quick benchmarks/gpu.sh      smaller; without --quick it takes about an hour
#   MODEL=tiny-random QUANTIZATION=none DEVICE=cpu benchmarks/gpu.sh
#
# Needs Python 3.10 or later with what scripts/requirements/{python,torch,cv}.txt name, torch for CUDA. PYTHON
# chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-benchmarks/results/gpu}
python=${PYTHON:-python3}
model=${MODEL:-qwen3vl-2b-random}
quantization=${QUANTIZATION:-nf4}
device=${DEVICE:-cuda}
read -ra benches <<<"${BENCHES:-overlap attention decode scale}"
read -ra more <<<"${ARGS:-}"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1

"$python" - "$device" <<'CHECK' || exit 2
import importlib.util
import sys

names = ('torch', 'transformers', 'bitsandbytes', 'numpy', 'PIL', 'cv2', 'rich', 'psutil', 'tqdm')
missing = [name for name in names if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f'gpu.sh: Python lacks {", ".join(missing)}; install scripts/requirements/*.txt')
import torch

if sys.argv[1] == 'cuda' and not torch.cuda.is_available():
    sys.exit(f'gpu.sh: torch {torch.__version__} sees no CUDA device')
CHECK

mkdir -p "$out"
code=0
for bench in "${benches[@]}"; do
  arguments=(--json "$out/$bench.json" --model "$model" --quantization "$quantization" --device "$device")
  case $bench in overlap | scale) [ -z "${SEGMENTS:-}" ] || arguments+=(--segments "$SEGMENTS") ;; esac
  [ "$bench" != scale ] || arguments+=(--plot "$out/scale.png")
  # An old one would look like this run's.
  rm -f "$out/$bench.json"
  status=0
  "$python" -m tww_ros.cli bench "$bench" "${arguments[@]}" ${more[@]+"${more[@]}"} || status=$?
  # 1: a target was missed, and the JSON says which.
  [ $status -le 1 ] && [ -f "$out/$bench.json" ] || status=2
  [ $status -le $code ] || code=$status
done
exit $code
