#!/usr/bin/env bash
# Eight words YES or NO per utterance, one speaker (OpenSLR 1): the smallest recipe on real speech. Figures in RESULTS.md.
#
#   transducer prepare download yesno && ./run.sh download/waves_yesno
#   ./run.sh FOLDER [FOLD]      FOLDER with the sound files, at any depth. With FOLD (0, 1 or 2), a third of the training half
#                               is held out as dev, and there is no test half: for choosing settings
#
# Pairs of words first, then pairs joined to up to 6 s, then whole utterances too: three minutes of whole utterances do not
# suffice to find the words, and a model of pairs alone misses repeated words in longer utterances (docs/experiments.md).
# All utterances of the training half begin with NO; the pairs, with silence around them, teach the model that YES may be
# the first. Re-running the script resumes.
set -euo pipefail
trap 'exit 130' INT   # after Ctrl-C, training saves and exits with 0: the commands after it must not start
folder=${1:?name the folder with the sound files}
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # products of so small a model take longer on two threads

[ -f table.tsv ] || python3 "$here/make_table.py" "$folder" table.tsv ${2:+--fold "$2"}
transducer prepare table table.tsv --prefix yesno --num-jobs 1

train() {   # OPTIONS...
  transducer train --prefix yesno --resume true --seed "${SEED:-42}" --valid-interval 10000 --save-every 10000 \
    --optimizer muon --ctc-loss-scale 0.5 --ctc-epochs 3 --num-workers 0 --enable-musan false \
    --num-buckets 2 --min-utterance-s 0.2 \
    --spec-aug-time-warp-factor 0 --num-frame-masks 0 --num-feature-masks 1 --features-mask-size 20 --dropout 0 "$@"
}

# the learning rate is still high at the end, as this model only initializes the next one
train --exp-dir exp_pairs --max-utterance-s 3.5 --max-duration 16 --num-epochs 3 --decay-epochs 6 --peak-lr 12e-3 --warm-step 20 \
  --num-layers 2 --attention-dim 64 --num-heads 4 --feedforward-dim 128 --conv-kernel 15 --subsampling-channels 16 \
  --joiner-dim 64 --feature-norm level --silence-s 0.4 --join-up-to-s 6 --lengthen-from-epoch 1
train --exp-dir exp --init-from exp_pairs/epoch-2.pt --max-duration 28 --num-epochs 2 --peak-lr 6e-3 --warm-step 10 \
  --silence-s 0.4 --join-up-to-s 8
for split in dev test; do
  [ -f "data/fbank/yesno_cuts_$split.jsonl.gz" ] || continue
  transducer decode --prefix yesno --exp-dir exp --avg 1 --test-sets $split --decoding-method greedy_search
done
