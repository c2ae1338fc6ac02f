"""Deployment: packages that run without the model's code, without tracing or compiler."""

from nir import load

__all__ = ["load"]
