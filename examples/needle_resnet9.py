"""ResNet-9 on CIFAR-10 in Needle's own words, then out of Needle: one file that runs alone.

python -m examples.needle_resnet9 --data cifar-10-batches-py [--epochs 2] [--batch 128]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import nir
import nir.needle as ndl
from nir.needle.apps.models import ResNet9


def run_epoch(
    model: ndl.nn.Module, loader: ndl.data.DataLoader, opt: ndl.optim.Optimizer | None = None
) -> tuple[float, float]:
    """(accuracy, loss) of one pass over ``loader``, which trains if there is ``opt``."""
    loss_fn = ndl.nn.SoftmaxLoss()
    model.train() if opt else model.eval()
    right, total, count = 0, 0.0, 0
    for x, y in loader:
        out = model(x)
        loss = loss_fn(out, y)
        if opt:
            opt.reset_grad()
            loss.backward()
            opt.step()
        right += int((out.numpy().argmax(axis=1) == y.numpy()).sum())
        total += float(loss.numpy().reshape(())) * y.shape[0]
        count += y.shape[0]
    return right / count, total / count


def export(model: ndl.nn.Module, path: Path) -> None:
    """The trained model as a package for every batch size."""
    model.eval()
    nir.compile(model, "f32[B,3,32,32]").save(path)


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, test, export; returns the test accuracy."""
    parser = argparse.ArgumentParser(prog="python -m examples.needle_resnet9")
    parser.add_argument("--data", required=True, help="a folder cifar-10-batches-py")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, help="train on the first so many only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(arguments)
    np.random.seed(args.seed)  # Needle draws all its random numbers from numpy

    train = ndl.data.CIFAR10Dataset(args.data, train=True)
    test = ndl.data.CIFAR10Dataset(args.data, train=False)
    if args.images:
        train = ndl.data.NDArrayDataset(train.X[: args.images], train.y[: args.images])
    train_loader = ndl.data.DataLoader(train, batch_size=args.batch, shuffle=True)
    test_loader = ndl.data.DataLoader(test, batch_size=args.batch)

    model = ResNet9(device=ndl.cpu(), dtype="float32")
    opt = ndl.optim.Adam(model.parameters(), lr=0.001, weight_decay=0.001)
    accuracy = 0.0
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        seen, loss = run_epoch(model, train_loader, opt)
        seconds = time.perf_counter() - start
        accuracy, _ = run_epoch(model, test_loader)
        print(
            f"epoch {epoch}/{args.epochs}  loss {loss:.4f}  accuracy {seen:.4f}  "
            f"test accuracy {accuracy:.4f}  {seconds:.1f} s"
        )

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "needle_resnet9.nirp"
    export(model, path)
    images = np.stack([test[i][0] for i in range(5)]).astype(np.float32)
    own = model(ndl.Tensor(images)).numpy()
    alone = np.asarray(nir.load(path)(images))
    print(f"{path}: logits differ from Needle's by at most {np.abs(own - alone).max():.1e}")
    return accuracy


if __name__ == "__main__":
    main()
