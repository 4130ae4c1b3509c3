#!/usr/bin/env bash
# The two measured tables of the README: the demo, and DINOv2 ViT-S/14 on Fashion-MNIST. Three seeds each.
#   FASHION=dir WEIGHTS=file.safetensors CLIPART=dir OUT=dir bash benchmarks/real_run.sh
# FASHION: torchvision's root of Fashion-MNIST; WEIGHTS: a DINOv2 ViT-S/14; CLIPART: image folder with train/ and test/.
set -euo pipefail
PRECISION=${PRECISION:-bf16}
for recipe in demo_full demo_linear demo_scratch demo_rsc demo_rift; do
  [ -f "$OUT/$recipe/metrics.json" ] || rift finetune --recipe $recipe --repeats 3 --out "$OUT/$recipe" --overwrite
done
for lr in 1e-5 4e-5; do
  for method in linear full rift rift_fixed rsc scratch; do
    [ -f "$OUT/$method-$lr/metrics.json" ] || rift finetune --recipe fashion_dinov2_$method --repeats 3 \
      --set data.root="$FASHION" --set model.weights="$WEIGHTS" --set optim.lr=$lr --set train.precision="$PRECISION" \
      --set eval.knn_k=5 --set "retention=[{format: image_folder, root: $CLIPART}]" --out "$OUT/$method-$lr" --overwrite
  done
done
