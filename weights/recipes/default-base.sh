#!/usr/bin/env bash
# Start or resume the base stage of the second default network: its transforms and its entropy model.
#   weights/recipes/default-base.sh OUT MINUTES DATA...
# DATA: folders of photographs under open licences, and drawn pictures (python experiments/drawn_pictures.py).
# Run it again with the same arguments to go on after a stop.
set -euo pipefail
out=$1 minutes=$2
shift 2
resume=()
if [ -e "$out/checkpoint.pt" ]; then resume=(--resume); fi
exec python -m latcodec train "$@" --output "$out" --minutes "$minutes" --codec hyperprior-asymmetric \
  --batch-size 8 --patch 256 --final-patch 256 --lr 4e-4 --decay-from 0.9 --seed 31 --lambda-range 0.4 41 \
  --threads 1 "${resume[@]}"
