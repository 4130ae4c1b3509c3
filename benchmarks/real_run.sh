#!/usr/bin/env bash
# The two measured tables of the README: the demo, and DINOv2 ViT-S/14 on Fashion-MNIST. Three seeds each.
#   FASHION=dir WEIGHTS=file.safetensors CLIPART=dir OUT=dir bash benchmarks/real_run.sh
# FASHION: torchvision's root of Fashion-MNIST; WEIGHTS: a DINOv2 ViT-S/14; CLIPART: image folder with train/ and test/.
# Runs that are there already are kept. Then: python benchmarks/table.py OUT/*
set -euo pipefail
PRECISION=${PRECISION:-bf16}
for recipe in demo_full demo_linear demo_scratch demo_rsc demo_rift; do
  [ -f "$OUT/$recipe/metrics.json" ] || rift finetune --recipe $recipe --repeats 3 --out "$OUT/$recipe"
done
dinov2() { # method, learning rate, name of the folder
  [ -f "$OUT/$3/metrics.json" ] || rift finetune --recipe fashion_dinov2_$1 --repeats 3 --out "$OUT/$3" \
    --set data.root="$FASHION" --set model.weights="$WEIGHTS" --set optim.lr=$2 --set train.precision="$PRECISION" \
    --set eval.knn_k=5 --set "retention=[{format: image_folder, root: $CLIPART}]"
}
dinov2 linear 1e-3 linear
for lr in 4e-5 1e-5; do
  for method in full rift rift_fixed rsc scratch; do
    dinov2 $method $lr $method-$lr
  done
done
