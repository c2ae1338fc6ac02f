"""Deployment: packages that run without the model's code, without tracing and without a compiler."""

from nir.runtime.package import load, metadata, save

__all__ = ["load", "metadata", "save"]
