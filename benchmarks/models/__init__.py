"""Models for inference, each written once for several frameworks.

A model is made by a function of ``nn``: `nir.nn`, `torch.nn` or `benchmarks.jax_layers`, which have
layers, functions and parameter paths alike.
"""

from benchmarks.models.text import bert_mini, gpt2_small
from benchmarks.models.vision import mobilenet_v2, resnet9, resnet50

__all__ = ["bert_mini", "gpt2_small", "mobilenet_v2", "resnet9", "resnet50"]
