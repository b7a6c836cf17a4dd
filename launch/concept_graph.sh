#!/usr/bin/env bash
# Trains the twins from the shipped model and compares them in one report:
#   bash launch/concept_graph.sh [RUNS_FOLDER] [SEED ...]
# A run that is complete is not repeated; an interrupted one goes on.
set -euo pipefail
runs="${1:-runs/concept_graph}"
shift || true
seeds=("${@:-0}")
folders=()
for seed in "${seeds[@]}"; do
  for method in sd sd_k3 rl rl_diversity; do
    folder="$runs/${method}_s${seed}"
    python -m sdjax.main --config="configs/concept_graph.py:$method" \
      --config.seed="$seed" --workdir="$folder"
    folders+=("$folder")
  done
done
python -m sdjax.report "${folders[@]}" --out="$runs/report"
