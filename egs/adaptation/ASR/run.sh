#!/usr/bin/env bash
# The demo's model before and after five minutes of a speaker who whispers: figures in RESULTS.md.
#
#   ./run.sh FOLDER     with the demo's data/ and exp/, as `transducer demo` leaves them
#
# About 3 minutes on two CPU cores.
set -euo pipefail
demo=$(realpath "${1:?name the folder of the demo}")
here=$(cd "$(dirname "$0")" && pwd)

"$here/say.py" --output-dir whisper --minutes 5
transducer prepare table whisper/table.tsv --prefix whisper --perturb-speed true
options="--prefix whisper --manifest-dir data/fbank --test-sets test"
for method in greedy_search modified_beam_search; do   # before
  transducer decode --exp-dir "$demo/exp" $options --decoding-method $method
done
transducer average --exp-dir "$demo/exp" --output model.pt
transducer train --prefix whisper --lang-dir "$demo/data/lang_char" --exp-dir exp --init-from model.pt \
  --optimizer adamw --peak-lr 1e-3 --warm-step 30 --num-epochs 8 --max-duration 24 --num-workers 0 --resume true
for method in greedy_search modified_beam_search; do   # after
  transducer decode --exp-dir exp $options --avg 3 --decoding-method $method
  transducer compare "$demo/exp/log/$method" "exp/log/$method" || true
done
