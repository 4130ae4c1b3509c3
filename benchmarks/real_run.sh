#!/usr/bin/env bash
# The measured tables of docs/results.md: the demo, and DINOv2 ViT-S/14 on Fashion-MNIST. Three seeds each.
#   FASHION=dir WEIGHTS=file.safetensors CLIPART=dir OUT=dir bash benchmarks/real_run.sh
# FASHION: torchvision's root of Fashion-MNIST; WEIGHTS: a DINOv2 ViT-S/14; CLIPART: image folder with train/ and test/.
# Runs that are there already are kept. Then: python benchmarks/table.py OUT/*
set -euo pipefail
PRECISION=${PRECISION:-bf16}
for recipe in demo_full demo_linear demo_scratch demo_rsc demo_rift; do
  [ -f "$OUT/$recipe/metrics.json" ] || rift finetune --recipe $recipe --repeats 3 --out "$OUT/$recipe"
done
dinov2() { # method, name of the folder, further options
  local method=$1 name=$2
  shift 2
  [ -f "$OUT/$name/metrics.json" ] || rift finetune --recipe fashion_dinov2_$method --repeats 3 --out "$OUT/$name" \
    --set data.root="$FASHION" --set model.weights="$WEIGHTS" --set train.precision="$PRECISION" \
    --set eval.knn_k=5 --set "retention=[{format: image_folder, root: $CLIPART}]" "$@"
}
# these tables are of the paper's form of RIFT; what the recipes name since is measured by recipes/studies/keep*.yaml
paper=(--set regularizer.compare=covariances --set regularizer.q=learn)
dinov2 linear linear --set optim.lr=1e-3
# with kNN and CKA on the clip art at every evaluation, for the curves of the page and rift correlate
for lr in 4e-5 1e-5; do
  for method in full rift_fixed rsc scratch; do
    dinov2 $method $method-$lr --set optim.lr=$lr --set eval.trajectory=true
  done
  dinov2 rift rift-$lr --set optim.lr=$lr --set eval.trajectory=true "${paper[@]}"
done
# adapters at the rates of their recipes, alone and with RIFT; then the other regularizers on full finetuning
for method in lora adaptformer vpt dora ssf oft boft partial bitfit norm_tune; do
  dinov2 $method $method
  dinov2 ${method}_rift ${method}_rift "${paper[@]}"
done
for method in l2sp feature_distill cosine_gram lp_ft; do dinov2 $method $method; done

# what was kept and what was lost, for the rows of the first table at 1e-5, and the page of that comparison
runs=("$OUT/linear" "$OUT/full-1e-5" "$OUT/rift-1e-5" "$OUT/rift_fixed-1e-5" "$OUT/rsc-1e-5")
named=("${runs[@]/#/--run=}")
cache=(--set "eval.cache=$OUT/features")
rift knn "${named[@]}" --data "imagefolder:$CLIPART" --k 5 "${cache[@]}" --out "$OUT/kept/knn-clipart"
rift knn "${named[@]}" --k 20 "${cache[@]}" --out "$OUT/kept/knn-fashion"
for rho in 0.01 0.001; do rift sharpness "${named[@]}" --rho $rho --out "$OUT/kept/sharpness-$rho"; done
rift correlate "${runs[@]}" --out "$OUT/kept/correlate"
rift report "${runs[@]}" --evaluate "${cache[@]}" --out "$OUT/kept/report.html"
rift compare "${runs[@]}" --out "$OUT/kept/table"
