#!/usr/bin/env bash
# The demo's model before and after five minutes of somebody who whispers about journeys: figures in RESULTS.md.
#
#   ./run.sh FOLDER     with the demo's data/, exp/ and model.pt, as `transducer demo` leaves them
#
# About 3 minutes on two CPU cores. Started again, it goes on where it stopped.
set -euo pipefail
trap 'exit 130' INT   # after Ctrl-C training saves and ends well: what comes after it must not begin
demo=$(realpath "${1:?name the folder of the demo}")
here=$(cd "$(dirname "$0")" && pwd)

decode() {   # FOLDER PREFIX OPTIONS...
  local folder=$1 prefix=$2
  shift 2
  for method in greedy_search modified_beam_search; do
    transducer decode --exp-dir "$folder" --prefix "$prefix" --manifest-dir "$demo/data/fbank" --test-sets test \
      --decoding-method $method "$@"
  done
}

[ -f travel/table.tsv ] || "$here/say.py" --output-dir travel --minutes 5
transducer prepare table travel/table.tsv --prefix travel --data-dir "$demo/data"
# characters of both: the model is to keep what it knows
transducer prepare lang aishell travel --data-dir "$demo/data" --lang-dir lang_both

mkdir -p before
cp "$demo/model.pt" before/epoch-0.pt
decode before travel --avg 1
# half of the batches are of what it has been trained on, lest it forgets
transducer train --prefix travel --mix-prefix aishell --mix-prob 0.5 --manifest-dir "$demo/data/fbank" --lang-dir lang_both \
  --exp-dir after --init-from "$demo/model.pt" --resume true \
  --optimizer adamw --peak-lr 1.5e-3 --warm-step 50 --num-epochs 10 --max-duration 24 --min-utterance-s 0.3 \
  --num-workers 0 --enable-musan false --spec-aug-time-warp-factor 0 --num-frame-masks 0 --features-mask-size 20 \
  --silence-s 0.5 --join-up-to-s 12
decode after travel --avg 3
decode after aishell --avg 3
for method in greedy_search modified_beam_search; do
  transducer compare before/log/$method/recogs-travel-test-*.txt after/log/$method/recogs-test-*.txt --num-examples 3
done
