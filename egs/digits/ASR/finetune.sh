#!/usr/bin/env bash
# Connected digits of an unseen speaker, from a published streaming model of another language. Figures: docs/experiments.md.
#
#   ./finetune.sh FOLDER SPEAKER [MODEL]
#
# FOLDER as for run.sh; the strings of SPEAKER are dev. MODEL: a folder with the ONNX graphs of a Zipformer, or the name of a
# published one; by default, a model of 3.3 million parameters for Mandarin. Its encoder knows many speakers, which the four
# of this corpus cannot teach. english.pt, which english.sh makes of it, is better. The first two stacks stay as they are: an
# update then takes half of the time. About 17 minutes on one CPU core. Needs the extras train and export, and hub for a
# name. Started again, it goes on where it stopped.
#
# The settings were chosen on nicolas.
set -euo pipefail
trap 'exit 130' INT   # Ctrl-C saves the training and must not start the next step
digits=${1:?name the folder with manifest.tsv and strings.tsv} speaker=${2:?name the speaker to test on}
model=${3:-kws-models/sherpa-onnx-kws-zipformer-wenetspeech-3.3M-2024-01-01-mobile}
here=$(cd "$(dirname "$0")" && pwd)

if [ ! -f start.pt ]; then
  if [ -f "$model" ]; then cp "$model" start.pt; else transducer import --onnx "$model" --output start.pt; fi
fi
[ -f joined/table.tsv ] || python3 "$here/join_strings.py" --output-dir joined \
  --recordings "$digits/manifest.tsv" --strings "$digits/strings.tsv" --dev-speaker "$speaker" \
  --train-limit 300 --dev-limit 300 --noise-share 0.5
transducer prepare table joined/table.tsv --prefix digits --token char --speeds 0.86 1.16
[ -d noise_8khz ] || python3 "$here/make_noise.py" noise_8khz
transducer prepare musan --corpus-dir noise_8khz

transducer train --lang-dir data/lang_char --prefix digits --exp-dir exp --resume true --seed "${SEED:-42}" \
  --encoder zipformer --init-from start.pt --freeze-layers 2 --optimizer muon --peak-lr 7e-4 --warm-step 15 --num-epochs 2 \
  --max-duration 48 --num-workers 0 --min-utterance-s 0.2 --modified-transducer-prob 0 --enable-spec-aug false \
  --enable-musan true --vtlp-range 0.1 --equalizer-range-db 10 --gain-range-db 10
for streaming in false true; do
  for method in greedy_search modified_beam_search; do
    transducer decode --prefix digits --exp-dir exp --test-sets dev --avg 1 --decoding-method $method --streaming $streaming
  done
done
