#!/usr/bin/env bash
# Connected digits of the Free Spoken Digit Dataset, an unseen speaker in dev: figures in RESULTS.md.
#
#   ./run.sh FOLDER [SPEAKER]   with manifest.tsv (id, path, ...), strings.tsv (id, speaker, split, text, segments, gaps_ms)
#                               and wav/; the strings of SPEAKER are dev, by default those that are dev in strings.tsv
#
# Four speakers and four microphones are few: speeds far apart, other vocal tracts, microphones and noises make up for some of
# it, and a narrow encoder. Each speaker has a level of his own, and a level must not say who speaks: it is taken away, which
# leaves two errors of three. An epoch without the microphones' noise comes first, since not every model learns to speak with it.
# Tokens are letters: a model of ten words as tokens leaves out every third of the digits that are said twice in a row
# (docs/experiments.md). About 40 minutes on one CPU core. Started again, it goes on where it stopped.
#
# SEED=1 ./run.sh FOLDER, in another folder, is another run. The settings were chosen on lucas, the speaker in dev;
# leave_one_out.sh runs this script for each speaker.
set -euo pipefail
trap 'exit 130' INT   # after Ctrl-C training saves and ends well: what comes after it must not begin
digits=${1:?name the folder with manifest.tsv and strings.tsv}
speaker=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
precision=${PRECISION:-auto}   # bf16 on a CPU with AMX: 1.5 times as fast

join() {   # FOLDER OPTIONS...
  local folder=$1
  shift
  [ -f "$folder/table.tsv" ] || python3 "$here/join_strings.py" \
    --recordings "$digits/manifest.tsv" --strings "$digits/strings.tsv" --output-dir "$folder" --dev-limit 500 \
    ${speaker:+--dev-speaker "$speaker"} "$@"
}

join joined_noisy --noise-share 0.6
join joined_clean
transducer prepare table joined_noisy/table.tsv --prefix digits --token char --speeds 0.86 1.16
transducer prepare table joined_clean/table.tsv --prefix clean --token char --speeds 0.86 1.16
[ -d noise_8khz ] || python3 "$here/make_noise.py" noise_8khz
transducer prepare musan --corpus-dir noise_8khz

train() {   # OPTIONS...
  transducer train --lang-dir data/lang_char --resume true --seed "${SEED:-42}" \
    --precision "$precision" --valid-interval 600 --save-every 500 \
    --optimizer adamw --warm-step 400 --weight-decay 0.05 --ctc-loss-scale 0.5 \
    --max-duration 48 --num-workers 0 --min-utterance-s 0.2 --enable-musan true --dropout 0.1 \
    --vtlp-range 0.1 --equalizer-range-db 10 \
    --spec-aug-time-warp-factor 0 --num-frame-masks 2 --frames-mask-size 15 --num-feature-masks 2 --features-mask-size 15 "$@"
}

# its learning rate is still high at the end, for it is only begun from
train --prefix clean --exp-dir exp_clean --num-epochs 1 --decay-epochs 2 --ctc-epochs 1 --peak-lr 2e-3 \
  --num-layers 4 --attention-dim 64 --num-heads 4 --feedforward-dim 256 --conv-kernel 15 --subsampling-channels 32 \
  --joiner-dim 64 --feature-norm level
train --prefix digits --exp-dir exp --num-epochs 3 --ctc-epochs 3 --peak-lr 1.5e-3 --init-from exp_clean/epoch-0.pt
for split in dev test; do
  [ -f "data/fbank/digits_cuts_$split.jsonl.gz" ] || continue
  for method in greedy_search modified_beam_search; do
    transducer decode --prefix digits --exp-dir exp --test-sets $split --avg 3 --decoding-method $method
  done
done
