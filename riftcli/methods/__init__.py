"""The three axes of a finetuning method: objectives, adapters, regularizers. Components never import each other."""
