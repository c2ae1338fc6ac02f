"""Trains ResNet-9 in compiled steps, exports it and classifies with the package alone.

    make demo                        scikit-learn's digits, enlarged to 32x32
    make demo DATA=folder            CIFAR-10 (cifar-10-batches-py) or MNIST (IDX)
    make demo EPOCHS=3 SEED=1 BATCH=64

Writes to ``--out``: curve.png, history.json, checkpoint.safetensors, resnet9.nirp, test.npz and,
under ir/, the graphs after each pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import nir
from examples.classify import peak_mib
from examples.resnet9 import Classifier, ResNet9
from nir import data
from nir.nn import functional as F

LEARNING_RATE, WEIGHT_DECAY = 5e-4, 1e-3  # the decay is coupled into the gradient (L2)
EVAL_BATCH = 500
DIGITS_EPOCHS, EPOCHS = 20, 10


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch; accuracies are shares."""

    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Task:
    """A data set: u8[N,3,32,32] and i64[N] of each split, and means and deviations by channel."""

    name: str
    train: data.TensorDataset
    test: data.TensorDataset
    mean: np.ndarray
    std: np.ndarray


def load_data(folder: str | None) -> Task:
    """CIFAR-10 or MNIST from ``folder``, scikit-learn's digits without one."""
    if folder is None:
        name, train, test = "digits", data.digits("train"), data.digits("test")
    elif any(Path(folder).glob("*idx3-ubyte*")):
        name, (train, test) = "MNIST", _mnist(folder)
    else:
        name, train, test = "CIFAR-10", data.cifar10(folder), data.cifar10(folder, "test")
    # Mirrored animals and vehicles are still such, mirrored digits are not.
    augment = data.RandomHorizontalFlip() if name == "CIFAR-10" else None
    # Exact and small: the float copy of all pixels that std() makes takes a gigabyte.
    counts = np.stack([np.bincount(train[0][:, c].ravel(), minlength=256) for c in range(3)])
    share, level = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ level
    return Task(
        name,
        data.TensorDataset(*train, transform=augment),
        data.TensorDataset(*test),
        mean,
        np.sqrt(share @ level**2 - mean**2),
    )


def _mnist(folder: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """MNIST as 32x32 images of three equal channels; without train files, test is split 8:2."""
    if any(Path(folder).glob("train-images*")):
        pairs = [data.mnist(folder, "train"), data.mnist(folder, "test")]
    else:
        images, labels = data.mnist(folder, "test")
        cut = len(images) * 8 // 10
        pairs = [(images[:cut], labels[:cut]), (images[cut:], labels[cut:])]
    return [
        (np.repeat(np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2))), 3, axis=1), labels)
        for images, labels in pairs
    ]


class Trainer:
    """The model, its optimiser and the two compiled functions: a step and an evaluation."""

    def __init__(self, task: Task) -> None:
        self.model = model = Classifier(ResNet9(), task.mean, task.std)
        self.optimizer = optimizer = nir.optim.Adam(
            model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        # B stays symbolic: one program serves full batches, the last partial one and any other.
        specs = ("u8[B,3,32,32]", "i64[B]")

        @nir.jit(state=[model, optimizer], specs=specs)
        def train(x: nir.Tensor, y: nir.Tensor) -> tuple[nir.Tensor, nir.Tensor]:
            optimizer.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            return loss.detach(), (logits.argmax(1) == y).sum()

        @nir.jit(state=[model], specs=specs)
        def evaluate(x: nir.Tensor, y: nir.Tensor) -> nir.Tensor:
            return (model(x).argmax(1) == y).sum()

        self.train, self.evaluate = train, evaluate

    def epoch(self, loader: data.DataLoader, tests: data.DataLoader, label: str) -> Epoch:
        """One pass over ``loader``, then the accuracy on ``tests``."""
        self.model.train()
        start = time.perf_counter()
        loss, right, seen = 0.0, 0, 0
        for x, y in progress(loader, label):
            batch_loss, batch_right = self.train(x, y)
            count = len(y)
            loss, right, seen = (
                loss + batch_loss.item() * count, right + batch_right.item(), seen + count,
            )  # fmt: skip
        seconds = time.perf_counter() - start
        self.model.eval()
        hits = sum(self.evaluate(x, y).item() for x, y in tests)
        return Epoch(loss / seen, right / seen, hits / len(tests.dataset), seconds)


def progress(loader: data.DataLoader, label: str):  # type: ignore[no-untyped-def]
    """``loader`` behind a progress bar."""
    from tqdm import tqdm

    return tqdm(loader, desc=label, total=len(loader), leave=False, disable=None)


def plot(history: list[Epoch], path: Path, title: str) -> None:
    """Loss and accuracies over the epochs as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    epochs = range(1, len(history) + 1)
    figure, left = plt.subplots(figsize=(6, 3.6), layout="constrained")
    left.plot(epochs, [e.loss for e in history], "o-", color="tab:red", label="training loss")
    left.set(xlabel="epoch", ylabel="loss", title=title, ylim=(0, None))
    right = left.twinx()
    right.plot(epochs, [e.train_accuracy for e in history], "s--", label="training accuracy")
    right.plot(epochs, [e.test_accuracy for e in history], "^-", label="test accuracy")
    right.set(ylabel="accuracy", ylim=(0, 1))
    handles = [h for axes in (left, right) for h in axes.get_lines()]
    left.legend(handles=handles, loc="center right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def export(model: Classifier, tests: data.TensorDataset, out: Path) -> Path:
    """Compile the model for inference and save it, with the test images, for another process."""
    executable = nir.compile(model.eval(), nir.spec("u8[B,3,32,32]"))
    package = out / "resnet9.nirp"
    executable.save(package)
    images, labels = tests.arrays
    np.savez(out / "test.npz", images=images, labels=labels)
    return package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder with CIFAR-10 or MNIST files")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    dumps = Path(os.environ.setdefault("NIR_DUMP", str(args.out / "ir")))

    task = load_data(args.data)
    name, train, test = task.name, task.train, task.test
    epochs = args.epochs or (DIGITS_EPOCHS if name == "digits" else EPOCHS)
    nir.manual_seed(args.seed)
    trainer = Trainer(task)
    # A half cosine from 5e-4 down to nearly 0; the rate is a tensor, so nothing compiles again.
    schedule = nir.optim.CosineAnnealingLR(trainer.optimizer, T_max=epochs)
    loader = data.DataLoader(train, args.batch, shuffle=True, seed=args.seed)
    tests = data.DataLoader(test, EVAL_BATCH)
    count = sum(p.numel() for p in trainer.model.parameters())
    print(f"ResNet-9, {count:,} parameters, on {name}: {len(train):,} + {len(test):,} images")

    history = []
    for i in range(1, epochs + 1):
        history.append(trainer.epoch(loader, tests, f"epoch {i}/{epochs}"))
        schedule.step()
        done = history[-1]
        print(
            f"epoch {i:2}/{epochs}  loss {done.loss:.4f}  accuracy {done.train_accuracy:.4f}  "
            f"test accuracy {done.test_accuracy:.4f}  {done.seconds:.1f} s  "
            f"{len(train) / done.seconds:,.0f} images/s",
            flush=True,
        )

    plot(history, args.out / "curve.png", f"ResNet-9 on {name}, seed {args.seed}")
    (args.out / "history.json").write_text(json.dumps([asdict(e) for e in history], indent=1))
    nir.save_checkpoint(
        args.out / "checkpoint.safetensors",
        model=trainer.model, optimizer=trainer.optimizer, schedule=schedule,
        loader=loader,
    )  # fmt: skip
    package = export(trainer.model, test, args.out)
    peak = peak_mib()
    compiled = trainer.train.compile_seconds + trainer.evaluate.compile_seconds
    print(f"compile time      {compiled:.2f} s for {trainer.train.compiles} training and "
          f"{trainer.evaluate.compiles} evaluation program")  # fmt: skip
    print(f"peak memory       {peak:.0f} MiB in this process")
    print(f"loss curve        {args.out / 'curve.png'}")
    print(f"IR dumps          {dumps}")
    print(f"package           {package}, {package.stat().st_size / 1024:,.0f} KiB", flush=True)
    # Another process, which knows nothing of the model: it has the package and the images.
    subprocess.run(
        [sys.executable, Path(__file__).with_name("classify.py"), package, args.out / "test.npz"],
        check=True,
    )


if __name__ == "__main__":
    main()
