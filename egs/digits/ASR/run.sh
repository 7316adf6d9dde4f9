#!/usr/bin/env bash
# Connected digits of the Free Spoken Digit Dataset, a speaker that training has not heard: figures in RESULTS.md.
#
#   ./run.sh FOLDER [SPEAKER]   with manifest.tsv (id, path, ...), strings.tsv (id, speaker, split, text, segments, gaps_ms)
#                               and wav/; the strings of SPEAKER are dev, by default those that are dev in strings.tsv
#
# Four speakers and four microphones are few. Speeds far apart, other vocal tracts, timbres and noises stand in for further
# ones. Each speaker has a level of his own, which must not identify him: it is subtracted. Tokens are letters: a model of
# ten words omits every third of the digits that are said twice in a row (docs/experiments.md). The settings are chosen by
# the mean of leave_one_out.sh. Re-running the script resumes where it stopped; SEED=1 ./run.sh in another folder is
# another run.
set -euo pipefail
trap 'exit 130' INT   # after Ctrl-C, training saves and exits with 0: the commands after it must not start
digits=${1:?name the folder with manifest.tsv and strings.tsv}
here=$(cd "$(dirname "$0")" && pwd)

[ -f joined/table.tsv ] || python3 "$here/join_strings.py" --recordings "$digits/manifest.tsv" --strings "$digits/strings.tsv" \
  --output-dir joined --train-limit 300 --dev-limit 500 --noise-share 0.4 ${2:+--dev-speaker "$2"}
transducer prepare table joined/table.tsv --prefix digits --token char --speeds 0.86 1.16
[ -d noise_8khz ] || python3 "$here/make_noise.py" noise_8khz
transducer prepare musan --corpus-dir noise_8khz

transducer train --prefix digits --lang-dir data/lang_char --exp-dir exp --resume true --seed "${SEED:-42}" \
  --precision "${PRECISION:-auto}" --valid-interval 10000 --save-every 500 --num-epochs 4 \
  --optimizer adamw --peak-lr 2e-3 --warm-step 100 --weight-decay 0.05 --ctc-loss-scale 0.5 --ctc-epochs 4 \
  --max-duration 36 --num-workers 0 --min-utterance-s 0.2 --enable-musan true --vtlp-range 0.15 --equalizer-range-db 10 \
  --spec-aug-time-warp-factor 0 --num-frame-masks 2 --frames-mask-size 15 --num-feature-masks 2 --features-mask-size 15 \
  --num-layers 4 --attention-dim 64 --num-heads 4 --feedforward-dim 256 --conv-kernel 15 --subsampling-channels 32 \
  --joiner-dim 64 --dropout 0.05 --feature-norm level
for split in dev test; do
  [ -f "data/fbank/digits_cuts_$split.jsonl.gz" ] || continue
  for method in greedy_search modified_beam_search; do
    transducer decode --prefix digits --exp-dir exp --test-sets $split --avg 2 --decoding-method $method
  done
done
