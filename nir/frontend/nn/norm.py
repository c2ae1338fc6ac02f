"""Normalisation layers with PyTorch's statistics and names."""

from __future__ import annotations

from nir.errors import ShapeError
from nir.frontend.functional import ones, zeros
from nir.frontend.nn import functional as F
from nir.frontend.nn.module import Module, Parameter
from nir.frontend.tensor import Tensor
from nir.ir.location import caller
from nir.ir.types import i64


class _BatchNorm(Module):
    """(x - mean) / sqrt(var + eps) weight + bias, for each channel (axis 1).

    Training takes mean and (biased) variance from the batch and moves the running ones:
    running = (1 - momentum) running + momentum batch, the variance unbiased (n / (n - 1); with
    n = 1 it counts as it is). ``momentum`` None averages over all batches. Evaluation takes the
    running ones.
    """

    ranks: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        dtype: object = "f32",
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = Parameter(ones(num_features, dtype=dtype)) if affine else None
        self.bias = Parameter(zeros(num_features, dtype=dtype)) if affine else None
        tracked = track_running_stats
        self.register_buffer("running_mean", zeros(num_features, dtype=dtype) if tracked else None)
        self.register_buffer("running_var", ones(num_features, dtype=dtype) if tracked else None)
        self.register_buffer("num_batches_tracked", zeros((), dtype=i64) if tracked else None)

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if len(x.shape) not in self.ranks or x.shape[1] != self.num_features:
            raise ShapeError(
                f"{type(self).__name__}: expected {self.num_features} channels on axis 1 and "
                f"{' or '.join(map(str, self.ranks))} axes, got shape {tuple(x.shape)}",
                caller(),
            )
        if not self.training and self.running_mean is not None:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        """By the statistics of ``x`` itself; in training they move the running ones."""
        y, mean, var = F.batch_norm_stats(x, self.weight, self.bias, self.eps)
        if self.training and self.running_mean is not None:
            self._track(x, mean.detach(), var.detach())
        return y

    def _track(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        assert self.num_batches_tracked is not None
        batches = self.num_batches_tracked + 1
        if self.momentum is None:
            share: Tensor | float = 1.0 / batches.to(mean.dtype)
        else:
            share = self.momentum
        unbiased = var * F.bessel(x, mean.dtype)
        self.num_batches_tracked = batches
        self._move(share, mean, unbiased)

    def _move(self, share: Tensor | float, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics by ``share`` of the way to ``mean`` and ``var``."""
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean = self.running_mean + share * (mean - self.running_mean)
        self.running_var = self.running_var + share * (var - self.running_var)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch norm of [N, C] or [N, C, L]."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch norm of [N, C, H, W]."""

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch norm of [N, C, D, H, W]."""

    ranks = (5,)


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) weight + bias over the last axes, of ``normalized_shape``."""

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: object = "f32",
    ) -> None:
        super().__init__()
        given = normalized_shape
        self.normalized_shape = (given,) if isinstance(given, int) else tuple(given)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        shape = self.normalized_shape
        self.weight = Parameter(ones(*shape, dtype=dtype)) if elementwise_affine else None
        with_bias = elementwise_affine and bias
        self.bias = Parameter(zeros(*shape, dtype=dtype)) if with_bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        shape, affine = self.normalized_shape, self.elementwise_affine
        return f"{shape}, eps={self.eps}, elementwise_affine={affine}"


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) weight over the last axes, of ``normalized_shape``.

    ``eps`` None is the dtype's distance from 1 to the next number.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float | None = None,
        elementwise_affine: bool = True,
        dtype: object = "f32",
    ) -> None:
        super().__init__()
        given = normalized_shape
        self.normalized_shape = (given,) if isinstance(given, int) else tuple(given)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        shape = self.normalized_shape
        self.weight = Parameter(ones(*shape, dtype=dtype)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        shape, affine = self.normalized_shape, self.elementwise_affine
        return f"{shape}, eps={self.eps}, elementwise_affine={affine}"


class GroupNorm(Module):
    """(x - mean) / sqrt(var + eps) weight + bias of [N, C, ...].

    The statistics are of each sample's groups of C/num_groups channels, in training and in
    evaluation alike; weight and bias [C].
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        dtype: object = "f32",
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ShapeError(
                f"GroupNorm: expected channels divisible by {num_groups} groups, "
                f"got {num_channels}",
                caller(),
            )
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = eps, affine
        self.weight = Parameter(ones(num_channels, dtype=dtype)) if affine else None
        self.bias = Parameter(zeros(num_channels, dtype=dtype)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ShapeError(
                f"GroupNorm: expected {self.num_channels} channels on axis 1, "
                f"got shape {tuple(x.shape)}",
                caller(),
            )
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class _InstanceNorm(_BatchNorm):
    """(x - mean) / sqrt(var + eps) weight + bias, for each channel of each sample.

    With ``track_running_stats`` training moves the running statistics by the mean over the batch
    of the samples' means and unbiased variances, and evaluation takes the running ones. As in
    PyTorch ``num_batches_tracked`` stays 0.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        dtype: object = "f32",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype)

    def normalise(self, x: Tensor) -> Tensor:
        if self.training and self.running_mean is not None:
            assert self.momentum is not None
            rows = x.detach().flatten(2)
            self._move(self.momentum, rows.mean(2).mean(0), rows.var(2).mean(0))
        return F.instance_norm(x, self.weight, self.bias, self.eps)


class InstanceNorm1d(_InstanceNorm):
    """Instance norm of [N, C, L]."""

    ranks = (3,)


class InstanceNorm2d(_InstanceNorm):
    """Instance norm of [N, C, H, W]."""

    ranks = (4,)


class InstanceNorm3d(_InstanceNorm):
    """Instance norm of [N, C, D, H, W]."""

    ranks = (5,)
