#!/usr/bin/env bash
# Data of the AISHELL-1 recipe, in icefall's stages; what is done already is skipped. Run it in this folder:
#
#   ./prepare.sh --stop-stage 4              download, manifests, fbank of AISHELL-1 and MUSAN
#   ./prepare.sh --stage 6 --stop-stage 6    characters
#   ./prepare.sh --stage 7 --stop-stage 7    byte-level BPE: data/lang_bbpe_500
#
# Options, with their defaults:
#   --stage -1             first stage
#   --stop-stage 11        last stage
#   --dl-dir download      where aishell/ and musan/ are, or are downloaded to; a link will do as well
#   --mirror URL           where to download from, instead of OpenSLR
#   --checksum true        false: take archives of a mirror that differ from OpenSLR's
#   --perturb-speed true   add the training set at 0.9 and 1.1 times its speed
#   --nj N                 processes
set -eou pipefail

stage=-1
stop_stage=11
dl_dir=$PWD/download
mirror=
checksum=true
perturb_speed=true
nj=

fail() {
  echo "prepare.sh: error: $*" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  # Kaldi's --stop_stage is --stop-stage
  name=${1#--}
  name=${name//-/_}
  case $1 in
    -h | --help) sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --stage | --stop[-_]stage | --dl[-_]dir | --mirror | --checksum | --perturb[-_]speed | --nj) ;;
    *) fail "unknown option $1; there are: --stage --stop-stage --dl-dir --mirror --checksum --perturb-speed --nj" ;;
  esac
  [ $# -ge 2 ] || fail "$1 needs a value"
  printf -v "$name" %s "$2"
  shift 2
done
for name in stage stop_stage; do
  [[ ${!name} =~ ^-?[0-9]+$ ]] || fail "--${name//_/-} must be a number, but is '${!name}'"
done
command -v transducer > /dev/null || fail "no command transducer; activate the environment it is installed in"

log() {
  echo "$(date '+%Y-%m-%d %H:%M:%S') (${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

# whether a stage is to be done
due() {
  [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ]
}

aishell=(transducer prepare aishell --corpus-dir "$dl_dir/aishell" ${nj:+--num-jobs "$nj"})
musan=(transducer prepare musan --corpus-dir "$dl_dir/musan" ${nj:+--num-jobs "$nj"})

download=(--dl-dir "$dl_dir" --checksum "$checksum" ${mirror:+--mirror "$mirror"})

log "dl_dir: $dl_dir"

if due 0; then
  log "stage 0: Download data"
  [ -d "$dl_dir/aishell/data_aishell/wav/train" ] ||
    transducer prepare download aishell "${download[@]}"
  [ -d "$dl_dir/musan" ] ||
    transducer prepare download musan "${download[@]}"
fi

if due 1; then
  log "Stage 1: Prepare aishell manifest"
  "${aishell[@]}" --step manifests
fi

if due 2; then
  log "Stage 2: Prepare musan manifest"
  "${musan[@]}" --step manifests
fi

if due 3; then
  log "Stage 3: Compute fbank for aishell"
  "${aishell[@]}" --step fbank --perturb-speed "$perturb_speed"
fi

if due 4; then
  log "Stage 4: Compute fbank for musan"
  "${musan[@]}" --step fbank
fi

if due 5; then
  log "Stage 5: Phone based lang: not needed, the model's tokens are characters"
fi

if due 6; then
  log "Stage 6: Prepare char based lang"
  "${aishell[@]}" --step lang
fi

if due 7; then
  log "Stage 7: Prepare byte-level BPE based lang"
  [ -f data/lang_bbpe_500/tokens.txt ] ||
    transducer prepare lang aishell --lang-dir data/lang_bbpe_500 --token bbpe --vocab-size 500
fi

for number in 8 9 10 11; do
  if due $number; then
    log "Stage $number: not needed: G, HLG and RNN language models are for other recipes"
  fi
done
