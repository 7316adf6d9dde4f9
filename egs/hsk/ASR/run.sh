#!/usr/bin/env bash
# Mandarin words of one speaker (audio-cmn), words that training has not heard, in the same voice: figures in RESULTS.md.
# other_speaker.sh tests another voice.
#
#   ./run.sh FOLDER     with manifest.tsv (id, path, text, pinyin, split: train, dev, perhaps test)
#
# One model after the other, each starting from the one before: letters and tone digits, toned syllables, characters. A
# thousand and more tokens with a handful of examples each are learnt by a model that already hears the letters, and not
# by a new one (docs/experiments.md). About an hour and a half on one CPU core. Started again, it goes on where it stopped.
set -euo pipefail
trap 'exit 130' INT   # after Ctrl-C training saves and ends well: what comes after it must not begin
hsk=${1:?name the folder with manifest.tsv}
precision=${PRECISION:-auto}   # bf16 on a CPU with AMX: 1.5 times as fast

prepare() {   # NAME COLUMN TOKEN
  transducer prepare table "$hsk/manifest.tsv" --prefix hsk --text-column "$2" --token "$3" \
    --data-dir "data_$1" --speeds 0.9 1.1
}

train() {   # NAME TOKEN OPTIONS...
  local name=$1 token=$2
  shift 2
  transducer train --prefix hsk --manifest-dir "data_$name/fbank" --lang-dir "data_$name/lang_$token" --exp-dir "exp_$name" \
    --precision "$precision" --valid-interval 10000 --save-every 2000 --resume true \
    --optimizer adamw --ctc-loss-scale 0.5 --max-duration 24 --num-buckets 4 --num-workers 0 --min-utterance-s 0.3 \
    --enable-musan false --spec-aug-time-warp-factor 0 --num-frame-masks 0 --features-mask-size 20 "$@"
  transducer average --exp-dir "exp_$name" --avg 2 --output "$name.pt"
  for split in dev test; do
    [ -f "data_$name/fbank/hsk_cuts_$split.jsonl.gz" ] || continue
    for method in greedy_search modified_beam_search; do
      transducer decode --prefix hsk --manifest-dir "data_$name/fbank" --exp-dir "exp_$name" --avg 2 --test-sets $split \
        --decoding-method $method
    done
  done
}

prepare letters pinyin char
train letters char --num-epochs 5 --warm-step 300 --peak-lr 2.5e-3 --ctc-epochs 2 --dropout 0.05 \
  --num-layers 4 --attention-dim 96 --num-heads 4 --feedforward-dim 384 --conv-kernel 15 --subsampling-channels 32 \
  --joiner-dim 128

prepare syllables pinyin word
train syllables word --init-from letters.pt --num-epochs 6 --warm-step 200 --peak-lr 1.5e-3 --ctc-epochs 3 --dropout 0.1

prepare characters text char
train characters char --init-from syllables.pt --num-epochs 6 --warm-step 200 --peak-lr 1.5e-3 --ctc-epochs 3 --dropout 0.1
