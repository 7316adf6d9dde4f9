#!/usr/bin/env bash
# Leave one speaker out: train on all speakers but one, test on that one, for each in turn. Figures in RESULTS.md.
#
#   ./leave_one_out.sh FOLDER [SPEAKER...]     FOLDER as for run.sh; by default, all speakers of train and dev
#   MODEL=M ./leave_one_out.sh FOLDER ...      with finetune.sh and its MODEL instead of run.sh, on live sound
#
# Each speaker has a folder of the name. At the end, and after an interruption for what is complete: a table with mean,
# median and worst. Settings are to be chosen by the mean. Re-running the script resumes where it stopped.
set -euo pipefail
trap 'exit 130' INT
digits=$(realpath "${1:?name the folder with manifest.tsv and strings.tsv}")
here=$(cd "$(dirname "$0")" && pwd)
model=${MODEL:-}
[ ! -e "$model" ] || model=$(realpath "$model")
shift
speakers=("$@")
[ ${#speakers[@]} -gt 0 ] || mapfile -t speakers < <(awk -F'\t' '
  NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
  $column["split"] != "test" { print $column["speaker"] }' "$digits/strings.tsv" | sort -u)

for speaker in "${speakers[@]}"; do
  mkdir -p "$speaker"
  if [ -n "$model" ]; then
    (cd "$speaker" && "$here/finetune.sh" "$digits" "$speaker" "$model")
  else
    (cd "$speaker" && "$here/run.sh" "$digits" "$speaker")
  fi
done
"$here/leave_one_out_table.py" ${model:+--streaming} "${speakers[@]}"
