"""Arithmetic that a step cannot do without: what its share of the FMA roof is counted from.

Two operations for each multiply-add of matrix products, convolutions and attention; products with
padding are not counted. A training step does each product three times: forward, for the gradient
of the input and for that of the weight; the first layer needs no gradient of its input.
"""

from __future__ import annotations


def linear(rows: int, inputs: int, outputs: int) -> float:
    return 2.0 * rows * inputs * outputs


def taps(size: int, kernel: int, stride: int, padding: int) -> int:
    """(output, tap) pairs along an axis of which the tap lies inside of the input."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    return sum(0 <= o * stride + k - padding < size for o in range(outputs) for k in range(kernel))


def conv(batch: int, inputs: int, outputs: int, size: int, kernel: int, stride: int = 1) -> float:
    """A square convolution whose padding is half of its kernel."""
    return 2.0 * batch * inputs * outputs * taps(size, kernel, stride, kernel // 2) ** 2


def causal_attention(batch: int, heads: int, tokens: int, width: int) -> float:
    """Scores and weighted sums over the tokens that each token may see."""
    return 4.0 * batch * heads * width * (tokens * (tokens + 1) / 2)
