"""Deployment: packages that run without the model's code, tracing or compiler."""

from nir.runtime.loaded import Loaded, load

__all__ = ["Loaded", "load"]
