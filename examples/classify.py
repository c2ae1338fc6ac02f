"""Classifies images with a saved package: no model code, no tracing, no compiler.

usage: classify.py PACKAGE.nirp IMAGES.npz
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import numpy as np

import nir

BATCH = 500


def peak_mib() -> float:
    """The most memory that this process has held; getrusage would count the parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def main() -> None:
    package, images_file = sys.argv[1:]
    start = time.perf_counter()
    classify = nir.load(package)
    loaded = time.perf_counter() - start
    with np.load(images_file) as file:
        images, labels = file["images"], file["labels"]

    classify(images[:BATCH])  # the first run sizes its arena
    right, seconds = 0, 0.0
    for i in range(0, len(images), BATCH):
        start = time.perf_counter()
        logits = np.asarray(classify(images[i : i + BATCH]))
        seconds += time.perf_counter() - start
        right += int((logits.argmax(1) == labels[i : i + BATCH]).sum())

    if "llvmlite" in sys.modules:
        raise SystemExit("the package must run without llvmlite")
    print(f"from the package  loaded in {loaded * 1e3:.1f} ms; accuracy {right / len(labels):.4f}; "
          f"{len(labels) / seconds:,.0f} images/s; peak memory {peak_mib():.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
