#!/usr/bin/env bash
# English letters for a published streaming model of Mandarin: a better start for finetune.sh. Figures: docs/experiments.md.
#
#   ./english.sh SO762 [MODEL]     writes english.pt, which finetune.sh takes as its MODEL
#
# SO762: the folder with manifest.tsv (id, path, speaker, text, split) of egs/so762, English sentences by 200 speakers. MODEL as
# for finetune.sh. Sounds are reduced to 8 kHz, as those of the digits. About 30 minutes on one CPU core. Started again, it goes
# on where it stopped. The settings are those of finetune.sh.
set -euo pipefail
trap 'exit 130' INT   # Ctrl-C saves the training and must not start the next step
so762=${1:?name the folder with manifest.tsv}
model=${2:-kws-models/sherpa-onnx-kws-zipformer-wenetspeech-3.3M-2024-01-01-mobile}
here=$(cd "$(dirname "$0")" && pwd)

[ -f mandarin.pt ] || transducer import --onnx "$model" --output mandarin.pt
[ -f narrow/table.tsv ] || python3 "$here/narrow_band.py" "$so762/manifest.tsv" narrow
transducer prepare table narrow/table.tsv --data-dir data_english --prefix so762 --token char --normalize-text true --perturb-speed false
[ -d noise_8khz ] || python3 "$here/make_noise.py" noise_8khz
transducer prepare musan --data-dir data_english --corpus-dir noise_8khz

transducer train --manifest-dir data_english/fbank --lang-dir data_english/lang_char --prefix so762 --exp-dir exp_english --resume true \
  --encoder zipformer --init-from mandarin.pt --freeze-layers 2 --optimizer muon --peak-lr 7e-4 --warm-step 30 --num-epochs 3 \
  --max-duration 48 --num-workers 0 --min-utterance-s 0.2 --modified-transducer-prob 0 --enable-spec-aug false \
  --enable-musan true --vtlp-range 0.1 --equalizer-range-db 10 --gain-range-db 10
transducer decode --manifest-dir data_english/fbank --prefix so762 --exp-dir exp_english --test-sets dev --avg 1 --streaming true
transducer average --exp-dir exp_english --avg 1 --output english.pt
