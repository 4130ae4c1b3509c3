"""What columns of a table are called for people, and what they mean in one sentence."""

from __future__ import annotations

WORDS = {
    "acc or map": ("accuracy or mAP", "Accuracy where an image has one label, mean average precision where it may have several."),
    "acc": ("accuracy", "Share of the test images whose likeliest class is the right one."),
    "top5": ("top-5 accuracy", "Share of the test images whose class is among the five likeliest."),
    "bacc": ("balanced accuracy", "Share of its images that was found, averaged over the classes."),
    "map": ("mean average precision", "Area under precision over recall, averaged over the labels."),
    "f1": ("F1", "Harmonic mean of precision and recall, averaged over the classes."),
    "auroc": ("AUROC", "Chance that an image with the class gets a higher score than one without, averaged over the classes."),
    "kappa": ("kappa", "Agreement beyond chance; with quadratic weights, near misses count less."),
    "ece": ("calibration error (ECE)", "How far stated probabilities are from the share that is right; 0 is perfect."),
    "nll": ("log loss", "Mean negative logarithm of the probability that the right class was given."),
    "brier": ("Brier score", "Mean squared distance of the probabilities from the truth."),
    "cka": ("similarity to the pretrained model (CKA)", "How alike the features are, up to a rotation: 1 is unchanged."),
    "cka_debiased": ("similarity, debiased (CKA)", "The same without the bias of small samples, which look alike."),
    "knn": ("nearest neighbours", "Share of the images of a set not trained on whose neighbours have their class: what is kept."),
    "probe": ("linear probe", "A linear classifier on the frozen features of a set not trained on: what is kept."),
    "sharpness": ("sharpness", "How far, at least, the loss can rise when all weights move a little; lower is flatter."),
    "zero-shot": ("zero-shot accuracy", "Accuracy on a set not trained on, with classes named in words alone: what is kept."),
    "shifted": ("accuracy elsewhere", "Accuracy on images of the same classes from elsewhere."),
    "image_to_text_r1": ("caption found first (R@1)", "Share of the images whose own caption is the nearest of all."),
    "text_to_image_r1": ("image found first (R@1)", "Share of the captions whose own image is the nearest of all."),
    "cmc_1": ("retrieval (CMC-1)", "Share of the queries whose nearest image of the gallery has their class."),
    "rsa": ("representational similarity (RSA)", "Correlation of the distances between images in both models."),
    "trainable parameters": ("trainable parameters", "Numbers that training may change."),
    "train seconds": ("seconds of training", "Wall-clock time of the training loop, without evaluation."),
    "peak memory GB": ("peak memory, GB", "Most memory that the run held: allocated on the GPU, or resident on the CPU."),
}  # fmt: skip
MAIN = (
    "acc or map",
    "acc",
    "bacc",
    "map",
    "auroc",
    "ece",
    "cka",
    "cka_debiased",
    "knn",
    "probe",
    "zero-shot",
    "shifted",
    "image_to_text_r1",
    "text_to_image_r1",
    "rsa",
)  # shown at once; others fold


def in_words(column: str) -> tuple[str, str]:
    """(name, definition) of a column; a column over one set of several (`knn pets`, `acc (isic)`) keeps what tells it apart."""
    key = next((k for k in sorted(WORDS, key=len, reverse=True) if column == k or column.startswith((f"{k} ", f"{k} ("))), None)
    if key is None:
        return column, ""
    name, definition = WORDS[key]
    rest = column.removeprefix(key).strip()
    return (f"{name} {rest}" if rest.startswith("(") else f"{name}, {rest}" if rest else name), definition


def is_main(column: str) -> bool:
    """True for what a person looks at first."""
    return any(column == key or column.startswith(f"{key} ") for key in MAIN)
