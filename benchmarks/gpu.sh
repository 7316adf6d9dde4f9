#!/usr/bin/env bash
# All that needs a GPU, in at most nine minutes on an H200: tests, a training that resumes, benchmarks.
#
#     benchmarks/gpu.sh [RESULTS.md]     # writes one file; default: benchmarks/results/<date>-gpu.md
#     benchmarks/gpu.sh --dry-run        # small sizes on the CPU, printed: do all parts run?
#
# PYTHON names the interpreter (default: python). A part that fails or takes too long is marked, and the others follow.
set -euo pipefail
case "${1:-}" in
  --dry-run | "") ;;
  -*) echo "usage: benchmarks/gpu.sh [RESULTS.md | --dry-run]" >&2; exit 2 ;;
  *) set -- "$(realpath "$1")" ;;
esac
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

if [ "${1:-}" = --dry-run ]; then
  # a busy CPU may take its time
  device=cpu results=/dev/null patience=10
  tests=(tests/ops/test_kernels.py -k "small and standard and two-way")
  train=(step --seconds 4 --threads 1 --repeats 1)
  loss=(--match "no case: the checks alone")
  decode=(--vocab-size 50 --batch-size 2 --repeats 1)
else
  $python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || {
    echo "gpu.sh: error: torch sees no GPU; \`--dry-run\` runs all parts on the CPU" >&2
    exit 1
  }
  device=cuda patience=1 results=${1:-benchmarks/results/$(date +%F)-gpu.md}
  tests=(tests/ops tests/decoding/test_searches.py tests/decoding/test_arrays.py tests/training/test_learner.py)
  train=(gpu)
  loss=()
  decode=(--batch-size 16 256)
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
report=$work/report.md
failed=0

# part TITLE SECONDS COMMAND...
part() {
  local title=$1 limit=$(($2 * patience)) status=0
  shift 2
  echo "gpu.sh: $title" >&2
  printf '## %s\n\n```sh\n%s\n```\n\n' "$title" "$(printf '%q ' "${@//$work/WORK}")" >>"$report"
  local started=$SECONDS
  timeout "$limit" "$@" >"$work/out" 2>"$work/err" || status=$?
  cat "$work/out" >>"$report"
  if [ $status -ne 0 ]; then
    failed=1
    # 124: stopped by timeout
    printf '\n**Failed with status %d.**\n\n```\n%s\n```\n' $status "$(tail -n 20 "$work/err")" >>"$report"
  fi
  printf '\n%d s of at most %d.\n\n' $((SECONDS - started)) "$limit" >>"$report"
}

printf '# GPU: tests and benchmarks\n\n`benchmarks/gpu.sh` on %s, commit %s, torch %s.\n\n' \
  "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 || echo a CPU)" \
  "$(git describe --always --dirty 2>/dev/null || echo unknown)" "$($python -c 'import torch; print(torch.__version__)')" \
  >"$report"

part "Tests" 130 $python -m pytest -q --no-header -p no:cacheprovider --device $device "${tests[@]}"

# one rank under torchrun: nccl on a GPU, gloo on a CPU
part "Corpus" 60 env PYTHONPATH=tests $python -c "
import sys; from pathlib import Path; from small_corpus import write_small_corpus
print(*write_small_corpus(Path(sys.argv[1])))" "$work/corpus"
# what the part printed; without a corpus, the next parts fail and are marked
read -ra flags <"$work/out" || true
training=($python -m torch.distributed.run --standalone --nproc-per-node 1 -m stateless_transducer.cli train ${flags[@]+"${flags[@]}"}
  --exp-dir "$work/exp" --max-duration 6 --resume true)
part "Training with one rank" 40 "${training[@]}" --num-epochs 2
part "Resumed training" 40 "${training[@]}" --num-epochs 3
part "Loss" 110 $python benchmarks/loss.py --device $device ${loss[@]+"${loss[@]}"}
part "Searches" 80 $python benchmarks/decode.py --device $device "${decode[@]}"
part "Training step" 130 $python benchmarks/train.py "${train[@]}"

if [ "$results" = /dev/null ]; then
  cat "$report"
else
  cp "$report" "$results.new"
  mv "$results.new" "$results"
  echo "gpu.sh: wrote $results" >&2
fi
exit $failed
