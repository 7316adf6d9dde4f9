#!/usr/bin/env bash
# Fine-tune a published streaming model of pinyin units on words of one speaker; export it again, and publish it as a
# folder. Results: docs/experiments.md.
#
#   ./run.sh MODEL DATA [OPTIONS]
#
# MODEL: the folder with the ONNX graphs, kws-models/NAME, or icefall's pretrained.pt, with tokens.txt in its repository
# DATA: the folder with manifest.tsv (path, split, pinyin)
# OPTIONS of transducer import, such as --num-heads 4,4,4,8,4,4 for a pretrained.pt
#
# Needs the extras train, export and demo, and hub for a name; sherpa-onnx is tested if it is installed. Re-running resumes where it stopped.
set -euo pipefail
trap 'exit 130' INT   # Ctrl-C saves the training and must not start the next step
model=${1:?name the model} data=${2:?name the folder with manifest.tsv}
here=$(cd "$(dirname "$0")" && pwd)
if [ -f "$model" ]; then
  format=model folder=$(dirname "$model")/..   # exp/pretrained.pt, data/lang_*/tokens.txt
else
  [ -d "$model" ] || model=$(transducer pull "$model" | tail -n 1)
  format=onnx folder=$model
fi

decode() {   # MODEL: whole utterances, then live sound
  transducer decode --model "$1" --prefix words --test-sets test
  transducer decode --model "$1" --prefix words --test-sets test --streaming true
}

mkdir -p before mean after
"$here/pinyin_units.py" "$data/manifest.tsv" "$(find "$folder" -name tokens.txt | head -n 1)" units
transducer import "--$format" "$model" --lang-dir units/lang --output before/model.pt "${@:3}"
transducer prepare table units/table.tsv --prefix words --token word --perturb-speed false
decode before/model.pt

# the mean of the weights stands for a learning rate that falls to zero
transducer train --prefix words --lang-dir units/lang --encoder zipformer --init-from before/model.pt \
  --exp-dir exp --resume true --optimizer scaled-adam --base-lr 0.004 --ema-decay 0.98 --num-epochs 1 --max-duration 60 \
  --num-buckets 4 --min-utterance-s 0.3 --silence-s 0.3 --modified-transducer-prob 0 --enable-musan false \
  --enable-spec-aug false --num-workers 0 --log-interval 20
# the mean with the initial weights forgets less of other speech
cp before/model.pt mean/epoch-0.pt
transducer average --exp-dir exp --avg 1 --use-ema true --output mean/epoch-1.pt
transducer average --exp-dir mean --epoch 1 --avg 2 --output after/model.pt
decode after/model.pt
transducer compare before/log/greedy_search/recogs-*streaming*.txt after/log/greedy_search/recogs-*streaming*.txt --num-examples 3

# graphs for sherpa-onnx, with the chunks that the model was trained on
transducer export onnx --model after/model.pt --output onnx --streaming true --int8 true
"$here/exact_words.py" {before,after}/log/greedy_search/recogs-*.txt
if python -c 'import sherpa_onnx' 2> /dev/null; then
  [ $format = model ] || "$here/exact_words.py" --graphs "$model" --table units/table.tsv
  "$here/exact_words.py" --graphs onnx --table units/table.tsv
fi
transducer push after/model.pt --language zh --output-dir published \
  --training-data "Words of one speaker, on top of the model that it was fine-tuned from." \
  --results after/log/greedy_search/result-*.json
