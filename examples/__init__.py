"""Models and programs written with nir; `python -m examples.demo` is the demonstration."""
