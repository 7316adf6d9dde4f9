#!/usr/bin/env bash
# Fine-tune a published streaming model of pinyin units, known as ONNX graphs alone, on words of one speaker.
#
#   ./run.sh MODEL DATA   the folder with the graphs, or kws-models/NAME; the folder with manifest.tsv (path, split, pinyin)
#
# Needs the extras train, export and demo, and hub for a name. Not run as a whole yet. Re-running resumes where it stopped.
set -euo pipefail
trap 'exit 130' INT   # Ctrl-C saves the training and must not start the next step
model=${1:?name the model} data=${2:?name the folder with manifest.tsv}
here=$(cd "$(dirname "$0")" && pwd)
[ -d "$model" ] || model=$(transducer pull "$model" | tail -n 1)

mkdir -p before after
"$here/pinyin_units.py" "$data/manifest.tsv" "$(find "$model" -name tokens.txt | head -n 1)" units
transducer import --onnx "$model" --lang-dir units/lang --output before/model.pt
transducer prepare table units/table.tsv --prefix words --token word --speeds
transducer decode --model before/model.pt --prefix words --test-sets dev
transducer train --prefix words --lang-dir units/lang --encoder zipformer --init-from before/model.pt --exp-dir exp --resume true \
  --optimizer adamw --peak-lr 5e-4 --warm-step 10 --num-epochs 1 --max-duration 60 --num-buckets 4 --min-utterance-s 0.3 \
  --silence-s 0.3 --modified-transducer-prob 0 --enable-musan false --enable-spec-aug false --num-workers 0
transducer average --exp-dir exp --avg 1 --output after/model.pt
transducer decode --model after/model.pt --prefix words --test-sets dev
transducer compare before/log/greedy_search/recogs-*.txt after/log/greedy_search/recogs-*.txt --num-examples 3
transducer export onnx --model after/model.pt --output onnx
