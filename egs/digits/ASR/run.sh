#!/usr/bin/env bash
# Connected digits of the Free Spoken Digit Dataset, an unseen speaker in dev: figures in RESULTS.md.
#
#   ./run.sh FOLDER     with manifest.tsv (id, path, ...), strings.tsv (id, speaker, split, text, segments, gaps_ms) and wav/
#
# About 25 minutes on two CPU cores.
set -euo pipefail
digits=${1:?name the folder with manifest.tsv and strings.tsv}
here=$(cd "$(dirname "$0")" && pwd)

[ -f joined/table.tsv ] ||
  python3 "$here/join_strings.py" --recordings "$digits/manifest.tsv" --strings "$digits/strings.tsv" --output-dir joined
transducer prepare table joined/table.tsv --prefix digits --token word
[ -f exp/epoch-1.pt ] ||
  transducer train --prefix digits --lang-dir data/lang_word --exp-dir exp --num-epochs 2 --valid-interval 200 \
    --optimizer adamw --warm-step 500 --peak-lr 2e-3 --ctc-loss-scale 0.5 --ctc-epochs 1 \
    --num-layers 4 --attention-dim 96 --num-heads 4 --feedforward-dim 384 --conv-kernel 15 --subsampling-channels 32 \
    --joiner-dim 96 --dropout 0.05 --max-duration 40 --num-workers 0 --drop-last true --min-utterance-s 0.3 \
    --spec-aug-time-warp-factor 0 --num-frame-masks 4 --frames-mask-size 20 --features-mask-size 27
for method in greedy_search modified_beam_search; do
  transducer decode --prefix digits --exp-dir exp --test-sets dev --epoch 1 --avg 1 --decoding-method $method
done
