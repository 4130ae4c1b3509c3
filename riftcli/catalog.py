"""The table of contents: name -> the class behind it. To extend riftcli, add a file and a line here."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from riftcli.errors import UsageError, did_you_mean

CATALOG: dict[str, dict[str, str]] = {
    "objective": {
        "cross_entropy": "riftcli.methods.objectives.cross_entropy:CrossEntropy",
        "bce": "riftcli.methods.objectives.bce:BinaryCrossEntropy",
        "contrastive": "riftcli.methods.objectives.contrastive:Contrastive",
        "prompt_cross_entropy": "riftcli.methods.objectives.prompt_cross_entropy:PromptCrossEntropy",
    },
    "adapter": {
        "full": "riftcli.methods.adapters.full:Full",
        "linear": "riftcli.methods.adapters.linear:Linear",
        "partial": "riftcli.methods.adapters.partial:Partial",
        "bitfit": "riftcli.methods.adapters.bitfit:BitFit",
        "norm_tune": "riftcli.methods.adapters.norm_tune:NormTune",
        "lora": "riftcli.methods.adapters.lora:Lora",
        "adaptformer": "riftcli.methods.adapters.adaptformer:AdaptFormer",
        "vpt": "riftcli.methods.adapters.vpt:Vpt",
        "ssf": "riftcli.methods.adapters.ssf:Ssf",
        "oft": "riftcli.methods.adapters.oft:Oft",
        "boft": "riftcli.methods.adapters.boft:Boft",
    },
    "regularizer": {
        "none": "riftcli.methods.regularizers.none:NoRegularizer",
        "rift": "riftcli.methods.regularizers.rift:Rift",
        "rsc": "riftcli.methods.regularizers.rsc:Rsc",
        "l2sp": "riftcli.methods.regularizers.l2sp:L2sp",
        "feature_distill": "riftcli.methods.regularizers.feature_distill:FeatureDistill",
        "cosine_gram": "riftcli.methods.regularizers.cosine_gram:CosineGram",
        "difference_vector": "riftcli.methods.regularizers.difference_vector:DifferenceVector",
        "ldifs": "riftcli.methods.regularizers.ldifs:Ldifs",
        "replay": "riftcli.methods.regularizers.replay:Replay",
        "snd": "riftcli.methods.regularizers.snd:Snd",
        "dive": "riftcli.methods.regularizers.dive:Dive",
        "cosine": "riftcli.methods.regularizers.cosine:Cosine",
        "trajectory_distill": "riftcli.methods.regularizers.trajectory_distill:TrajectoryDistill",
    },
    "strength": {
        "ratio": "riftcli.methods.strengths.gradient_ratio:GradientRatio",
        "keep": "riftcli.methods.strengths.target_similarity:TargetSimilarity",
    },
    "data": {
        "digits": "riftcli.data.datasets.digits:Digits",
        "demo_fashion": "riftcli.data.datasets.demo_fashion:DemoFashion",
        "torchvision": "riftcli.data.datasets.torchvision:Torchvision",
        "image_folder": "riftcli.data.datasets.image_folder:ImageFolder",
        "csv_table": "riftcli.data.datasets.csv_table:CsvTable",
        "isic2018": "riftcli.data.datasets.isic2018:Isic2018",
        "aptos2019": "riftcli.data.datasets.aptos2019:Aptos2019",
        "medfm": "riftcli.data.datasets.medfm:MedFm",
        "cub200": "riftcli.data.datasets.cub200:Cub200",
        "imagenet": "riftcli.data.datasets.imagenet:ImageNet",
        "imagenet_shift": "riftcli.data.datasets.imagenet_shift:ImageNetShift",
        "iwildcam": "riftcli.data.datasets.iwildcam:IWildCam",
        "fmow": "riftcli.data.datasets.fmow:Fmow",
        "captions": "riftcli.data.datasets.captions:Captions",
    },
    "metric": {
        "acc": "riftcli.evaluation.metrics.classification:Accuracy",
        "top5": "riftcli.evaluation.metrics.classification:TopFive",
        "bacc": "riftcli.evaluation.metrics.classification:BalancedAccuracy",
        "f1": "riftcli.evaluation.metrics.classification:MacroF1",
        "worst_group": "riftcli.evaluation.metrics.classification:WorstGroup",
        "auroc": "riftcli.evaluation.metrics.classification:Auroc",
        "map": "riftcli.evaluation.metrics.classification:MeanAveragePrecision",
        "kappa": "riftcli.evaluation.metrics.classification:Kappa",
        "ece": "riftcli.evaluation.metrics.calibration:ExpectedCalibrationError",
        "ece_adaptive": "riftcli.evaluation.metrics.calibration:AdaptiveCalibrationError",
        "brier": "riftcli.evaluation.metrics.calibration:Brier",
        "nll": "riftcli.evaluation.metrics.calibration:NegativeLogLikelihood",
        "knn": "riftcli.evaluation.metrics.knn:Knn",
        "cka": "riftcli.evaluation.metrics.linear_similarity:Cka",
        "cka_debiased": "riftcli.evaluation.metrics.linear_similarity:CkaDebiased",
        "cka_rbf": "riftcli.evaluation.metrics.pair_similarity:CkaRbf",
        "rsa": "riftcli.evaluation.metrics.pair_similarity:Rsa",
        "rsa_centred": "riftcli.evaluation.metrics.pair_similarity:RsaCentred",
        "rsa_spearman": "riftcli.evaluation.metrics.pair_similarity:RsaSpearman",
        "rsa_euclid": "riftcli.evaluation.metrics.pair_similarity:RsaEuclid",
        "procrustes": "riftcli.evaluation.metrics.linear_similarity:Procrustes",
        "cca": "riftcli.evaluation.metrics.linear_similarity:Cca",
        "svcca": "riftcli.evaluation.metrics.linear_similarity:Svcca",
        "mutual_knn": "riftcli.evaluation.metrics.pair_similarity:MutualKnn",
        "centre_distance": "riftcli.evaluation.metrics.map_overlap:CentreDistance",
        "overlap": "riftcli.evaluation.metrics.map_overlap:Overlap",
        "effective_rank": "riftcli.evaluation.metrics.linear_similarity:EffectiveRank",
    },
    "tracker": {
        "tensorboard": "riftcli.training.trackers.tensorboard:TensorBoard",
        "wandb": "riftcli.training.trackers.wandb_like:Wandb",
        "trackio": "riftcli.training.trackers.wandb_like:Trackio",
    },
    "evaluator": {
        "knn": "riftcli.evaluation.evaluators.knn:Knn",
        "similarity": "riftcli.evaluation.evaluators.similarity:Similarity",
        "sharpness": "riftcli.evaluation.evaluators.sharpness:Sharpness",
        "attention": "riftcli.evaluation.evaluators.attention:Attention",
        "centrality": "riftcli.evaluation.evaluators.centrality:Centrality",
        "correlate": "riftcli.evaluation.evaluators.correlation:Correlation",
        "zeroshot": "riftcli.evaluation.evaluators.zeroshot:ZeroShot",
        "captions": "riftcli.evaluation.evaluators.captions:CaptionRetrieval",
        "retrieval": "riftcli.evaluation.evaluators.retrieval:Retrieval",
        "clinical": "riftcli.evaluation.evaluators.clinical:Clinical",
    },
}


def names(kind: str) -> list[str]:
    """The names a recipe may use for `kind`, in catalog order."""
    return list(CATALOG[kind])


@cache
def component(kind: str, name: str) -> type:
    """Import and return the class behind a name; raise UsageError for a name that is not in the catalog."""
    table = CATALOG[kind]
    if name not in table:
        raise UsageError(f"unknown {kind} '{name}'{did_you_mean(name, list(table))}; choose one of: {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def adapt(vit: Any, spec: dict[str, Any]) -> None:
    """Do an adapter's surgery again on a built model: `spec` is `adapter` as a resolved recipe holds it."""
    fields = {key: value for key, value in spec.items() if key != "name"}
    component("adapter", spec["name"])(**fields).prepare(vit)
