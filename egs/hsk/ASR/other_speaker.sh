#!/usr/bin/env bash
# Another speaker than the one of the HSK words: how far does a model of one voice reach? Figures in RESULTS.md.
#
#   ./other_speaker.sh FOLDER   with manifest.tsv (id, path, text: a syllable with its tone digit, split: dev); in the folder
#                               in which run.sh has trained the model of letters (exp_letters)
#
# About a minute on one CPU core.
set -euo pipefail
trap 'exit 130' INT
pinyin=${1:?name the folder with manifest.tsv}

transducer prepare table "$pinyin/manifest.tsv" --prefix pinyin --data-dir data_pinyin
for method in greedy_search modified_beam_search; do
  transducer decode --prefix pinyin --manifest-dir data_pinyin/fbank --exp-dir exp_letters --avg 2 --test-sets dev \
    --decoding-method $method
done
