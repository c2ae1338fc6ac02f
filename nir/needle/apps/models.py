"""`ResNet9` and `LanguageModel`."""

from __future__ import annotations

from typing import Any

from nir.needle import nn


def ConvBN(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    device: Any = None,
    dtype: Any = "float32",
) -> nn.Module:
    """Convolution, batch norm and ReLU."""
    kind: dict[str, Any] = {"device": device, "dtype": dtype}
    return nn.Sequential(
        nn.Conv(in_channels, out_channels, kernel_size, stride, **kind),
        nn.BatchNorm2d(out_channels, **kind),
        nn.ReLU(),
    )


class ResNet9(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, 10), by nine convolutions with two skips."""

    def __init__(self, device: Any = None, dtype: Any = "float32") -> None:
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}

        def twice(channels: int) -> nn.Module:
            layers = [ConvBN(channels, channels, 3, 1, **kind) for _ in range(2)]
            return nn.Residual(nn.Sequential(*layers))

        self.model = nn.Sequential(
            ConvBN(3, 16, 7, 4, **kind),
            ConvBN(16, 32, 3, 2, **kind),
            twice(32),
            ConvBN(32, 64, 3, 2, **kind),
            ConvBN(64, 128, 3, 2, **kind),
            twice(128),
            nn.Flatten(),
            nn.Linear(128, 128, **kind),
            nn.ReLU(),
            nn.Linear(128, 10, **kind),
        )

    def forward(self, x: Any) -> Any:
        return self.model(x)


class LanguageModel(nn.Module):
    """Word ids (T, B) to logits (T B, V) of the next words, and the last state.

    ``seq_model`` is "rnn", "lstm" or "transformer"; the state is h, (h, c) or zeros.
    """

    def __init__(
        self,
        embedding_size: int,
        output_size: int,
        hidden_size: int,
        num_layers: int = 1,
        seq_model: str = "rnn",
        seq_len: int = 40,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(output_size, embedding_size, **kind)
        width = hidden_size
        match seq_model:
            case "rnn":
                self.seq_model: Any = nn.RNN(embedding_size, hidden_size, num_layers, **kind)
            case "lstm":
                self.seq_model = nn.LSTM(embedding_size, hidden_size, num_layers, **kind)
            case "transformer":
                self.seq_model = nn.Transformer(
                    embedding_size, hidden_size, num_layers, sequence_len=seq_len, **kind
                )
                width = embedding_size
            case _:
                raise ValueError(f"expected 'rnn', 'lstm' or 'transformer', got {seq_model!r}")
        self.linear = nn.Linear(width, output_size, **kind)

    def forward(self, x: Any, h: Any = None) -> Any:
        length, batch = x.shape
        out, h = self.seq_model(self.embedding(x), h)
        return self.linear(out.reshape((length * batch, out.shape[2]))), h
