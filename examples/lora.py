"""Adapts a trained classifier to another task by low-rank changes of its weights (LoRA).

    python -m examples.lora [--epochs 10] [--rank 4] [--seed 0]

A classifier of digits is trained, then its weights are frozen and it meets inverted digits, dark
on light. Beside every Linear W come two small matrices, W + (scale / r) B A with A [r, in] and
B [out, r]: they alone are trained. Merged into W at the end, they cost nothing to run.
Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import nir
from examples import digits
from nir import nn
from nir.nn import functional as F


class LoRALinear(nn.Module):
    """``base`` with a trainable change of its weight, 0 at first; the base itself is frozen."""

    def __init__(self, base: nn.Linear, rank: int, scale: float = 8.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale / rank
        self.a = nn.Parameter(nir.randn(rank, base.in_features) * base.in_features**-0.5)
        self.b = nn.Parameter(nir.zeros(base.out_features, rank))

    def forward(self, x: nir.Tensor) -> nir.Tensor:
        low = F.linear(F.linear(x, self.a), self.b)
        return self.base(x) + low * self.scale

    def merged(self) -> nn.Linear:
        """A Linear that computes the same."""
        base = self.base
        out = nn.Linear(base.in_features, base.out_features, base.bias is not None)
        weight = (base.weight + self.b @ self.a * self.scale).detach()
        state = {"weight": weight} | ({} if base.bias is None else {"bias": base.bias})
        out.load_state_dict(state)
        return out


def adapted(model: nn.Sequential, rank: int) -> nn.Sequential:
    """The layers of ``model``, the Linear ones frozen and with a change to train."""
    return nn.Sequential(*(LoRALinear(m, rank) if isinstance(m, nn.Linear) else m for m in model))


def merged(model: nn.Sequential) -> nn.Sequential:
    """The layers of `adapted`, plain again."""
    return nn.Sequential(*(m.merged() if isinstance(m, LoRALinear) else m for m in model))


def count(model: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


@dataclass(frozen=True)
class Result:
    """Accuracies on test images of the new task, and the largest difference after the merge."""

    parameters: int
    trained: int
    own_task: float
    before: float
    after: float
    merged: float
    difference: float


def run(epochs: int, rank: int, seed: int) -> Result:
    nir.manual_seed(seed)
    images, labels = digits.load()
    test, test_labels = digits.load("test")
    model = digits.classifier()
    digits.fit(model, images, labels, epochs, 3e-3, seed)
    own_task = digits.accuracy(model, test, test_labels)
    before = digits.accuracy(model, -test, test_labels)  # pixels from -1 to 1: inverted

    lora = adapted(model, rank)
    digits.fit(lora, -images, labels, epochs, 1e-2, seed + 1)
    plain = merged(lora)
    difference = abs(digits.logits(plain, -test) - digits.logits(lora, -test)).max()
    return Result(
        count(model),
        count(lora, trained=True),
        own_task,
        before,
        digits.accuracy(lora, -test, test_labels),
        digits.accuracy(plain, -test, test_labels),
        float(difference),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    r = run(args.epochs, args.rank, args.seed)
    print(f"trained           {r.trained:,} parameters beside {r.parameters:,} frozen ones")
    print(f"digits            accuracy {r.own_task:.4f} of the trained classifier")
    print(f"inverted digits   accuracy {r.before:.4f} before, {r.after:.4f} with LoRA, "
          f"{r.merged:.4f} merged")  # fmt: skip
    print(f"merged            logits differ by at most {r.difference:.1e}")


if __name__ == "__main__":
    main()
