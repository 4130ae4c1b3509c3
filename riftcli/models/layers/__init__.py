"""Torch modules that adapters put into a ViT."""
