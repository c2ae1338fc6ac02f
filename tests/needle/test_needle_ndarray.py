"""`NDArray`: strided views, arithmetic, reductions, devices and the device module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nir.needle import backend_ndarray as nd
from nir.needle import backend_numpy


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_is(actual: Any, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected, 1e-5, 1e-6)


# ---- views ---------------------------------------------------------------------------------------

VIEWS: dict[str, tuple[Callable[[Any], Any], Callable[[np.ndarray], np.ndarray]]] = {
    "permute": (lambda a: a.permute((2, 0, 1)), lambda a: a.transpose(2, 0, 1)),
    "broadcast": (
        lambda a: a[:, :1, :].broadcast_to((4, 7, 6)),
        lambda a: np.broadcast_to(a[:, :1], (4, 7, 6)),
    ),
    "new axis": (
        lambda a: a.broadcast_to((2, 4, 5, 6)), lambda a: np.broadcast_to(a, (2, 4, 5, 6)),
    ),
    "reshape": (lambda a: a.reshape((5, 24)), lambda a: a.reshape(5, 24)),
    "slice": (lambda a: a[1:3, 2:5, 0:6:2], lambda a: a[1:3, 2:5, 0:6:2]),
    "index keeps the axis": (lambda a: a[1, 2, 3], lambda a: a[1:2, 2:3, 3:4]),
    "from the end": (lambda a: a[-2:, -1, :-1], lambda a: a[-2:, -1:, :-1]),
    "view of a view": (
        lambda a: a.permute((1, 0, 2))[1:4, 2, :], lambda a: a.swapaxes(0, 1)[1:4, 2:3],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("pending", [False, True], ids=["stored", "recorded"])
def test_views_share_the_buffer(name: str, pending: bool) -> None:
    fn, reference = VIEWS[name]
    _a = array(4, 5, 6)
    a = nd.array(_a)
    if pending:
        a, _a = a * 2.0, _a * 2
    view, expected = fn(a), reference(_a)
    assert_is(view, expected)
    assert view._handle.ptr() == a._handle.ptr()
    sizes = [(n, s // 4) for n, s in zip(expected.shape, expected.strides, strict=True) if n > 1]
    assert [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n > 1] == sizes
    assert_is(view, expected)
    assert_is(view + 1.0, expected + 1)
    assert_is(view.compact(), expected)
    assert view.compact().is_compact()


def test_a_write_through_a_view_is_seen_everywhere() -> None:
    a = nd.array(np.zeros((3, 4))) + 1.0
    row = a.permute((1, 0))[:, 1]
    a[1, :] = 5.0
    assert_is(row, np.full((4, 1), 5.0))
    a[0:2, 1:3] = nd.array(np.arange(4).reshape(2, 2))
    expected = np.array([[1, 0, 1, 1], [5, 2, 3, 5], [1, 1, 1, 1]], np.float32)
    assert_is(a, expected)
    assert_is(a * 2.0, 2 * expected)
    a.flat[11] += 7.0
    expected[2, 3] = 8
    assert_is(a, expected)
    a.fill(2.0)
    assert_is(row, np.full((4, 1), 2.0))


def test_writes_keep_the_memory_where_it_is() -> None:
    a = nd.array(array(4, 4))
    at = a._handle.ptr()
    a[1:3, :] = 1.0
    (a * 2.0).numpy()
    a[0, 0] = nd.array(np.array([[3.0]]))
    assert a._handle.ptr() == at


def test_a_recorded_result_does_not_see_later_writes() -> None:
    a = nd.array(np.ones(3))
    b = a + 1.0
    a[0:1] = 9.0
    assert_is(b, np.full(3, 2.0, np.float32))


def test_compactness() -> None:
    a = nd.array(array(3, 4))
    assert a.is_compact() and not a.permute((1, 0)).is_compact()
    assert not a[0:2, :].is_compact()  # its buffer is larger
    assert a.compact() is a
    with pytest.raises(ValueError):
        a.permute((1, 0)).reshape((12,))
    with pytest.raises(ValueError):
        a.reshape((5,))


def test_make_takes_strides_and_an_offset() -> None:
    a = nd.array(np.arange(12))
    view = nd.NDArray.make((2, 3), strides=(4, 1), device=a.device, handle=a._handle, offset=1)
    assert_is(view, np.array([[1, 2, 3], [5, 6, 7]], np.float32))
    assert nd.NDArray.compact_strides((2, 3, 4)) == (12, 4, 1)
    assert_is(a.as_strided((3, 2), (2, 1)), np.arange(6, dtype=np.float32).reshape(3, 2))


def test_indices_are_checked() -> None:
    a = nd.array(array(3, 4))
    with pytest.raises(AssertionError):
        a[1]
    with pytest.raises(IndexError):
        a[3, 0]
    with pytest.raises(AssertionError):
        a[::-1, 0]


# ---- arithmetic ----------------------------------------------------------------------------------

EWISE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "ge": lambda a, b: a >= b,
    "gt": lambda a, b: a > b,
    "le": lambda a, b: a <= b,
    "lt": lambda a, b: a < b,
}


@pytest.mark.parametrize("name", EWISE)
def test_elementwise(name: str) -> None:
    fn = EWISE[name]
    _a, _b = np.abs(array(3, 4)), np.abs(array(3, 4, seed=1)) + 0.5
    _b[0] = _a[0]
    a, b = nd.array(_a), nd.array(_b)
    assert_is(fn(a, b), fn(_a, _b).astype(np.float32))
    assert_is(fn(a, 0.75), fn(_a, np.float32(0.75)).astype(np.float32))
    with pytest.raises(AssertionError):
        fn(a, b.reshape((4, 3)))


def test_functions_of_one_array() -> None:
    _a = np.abs(array(3, 4)) + 0.1
    a = nd.array(_a)
    for fn, reference in ((nd.log, np.log), (nd.exp, np.exp), (nd.tanh, np.tanh)):
        assert_is(fn(a), reference(_a))
    assert_is(-a, -_a)
    assert_is(a**2.5, _a**2.5)
    assert_is(2.0 - a, 2 - _a)
    assert_is(2.0 + a, 2 + _a)
    assert_is(a.maximum(0.7), np.maximum(_a, 0.7))
    assert_is(nd.maximum(a, nd.array(_a[::-1].copy())), np.maximum(_a, _a[::-1]))


@pytest.mark.parametrize(("m", "n", "p"), [(1, 2, 3), (5, 4, 3), (72, 73, 74)])
def test_matmul(m: int, n: int, p: int) -> None:
    a, b = array(m, n), array(n, p, seed=1)
    np.testing.assert_allclose((nd.array(a) @ nd.array(b)).numpy(), a @ b, 1e-4, 1e-4)
    swapped = nd.array(np.ascontiguousarray(b.T)).permute((1, 0))
    np.testing.assert_allclose((nd.array(a) @ swapped).numpy(), a @ b, 1e-4, 1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, (1,), (0, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(axis: Any, keepdims: bool) -> None:
    _a = array(4, 5, 6)
    a = nd.array(_a)
    assert_is(a.sum(axis=axis, keepdims=keepdims), _a.sum(axis=axis, keepdims=keepdims))
    assert_is(a.max(axis=axis, keepdims=keepdims), _a.max(axis=axis, keepdims=keepdims))


def test_a_reduction_over_all_axes_has_one() -> None:
    _a = array(4, 5)
    assert_is(nd.array(_a).sum(), _a.sum().reshape(1))
    assert_is(nd.array(_a).max(keepdims=True), _a.max().reshape(1, 1))


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_flip(axes: tuple[int, ...]) -> None:
    _a = array(2, 3, 4)
    out = nd.flip(nd.array(_a), axes)
    assert_is(out, np.flip(_a, axes))
    assert out.is_compact()


def test_pad() -> None:
    _a = array(2, 3, 4)
    sides = ((0, 1), (2, 0), (1, 1))
    assert_is(nd.array(_a).pad(sides), np.pad(_a, sides))


def test_arrays_are_copies() -> None:
    _a = array(3)
    a = nd.array(_a)
    _a[0] = 100
    b = nd.NDArray(a)
    b[0:1] = 7.0
    assert a.numpy()[0] != 7 and a.numpy()[0] != 100
    assert nd.array([[1, 2]]).dtype == "float32"
    assert_is(nd.full((2, 2), 3.0), np.full((2, 2), 3, np.float32))
    assert nd.empty((2, 3)).shape == (2, 3)


# ---- devices -------------------------------------------------------------------------------------


def test_devices() -> None:
    assert str(nd.cpu()) == "cpu()" and nd.cpu() == nd.cpu() and nd.cpu() != nd.cpu_numpy()
    assert nd.cpu().enabled() and not nd.cuda().enabled()
    assert nd.default_device() == nd.cpu_numpy() and len(nd.all_devices()) == 3
    a = nd.array(array(3), device=nd.cpu())
    assert a.device == nd.cpu() and a.to(nd.cpu_numpy()).device == nd.cpu_numpy()
    with pytest.raises(TypeError):
        hash(nd.cpu())
    with pytest.raises(AttributeError):
        nd.cuda().from_numpy  # noqa: B018
    np.random.seed(0)
    drawn = nd.cpu().rand(2, 3)
    np.random.seed(0)
    assert_is(drawn, np.random.rand(2, 3).astype(np.float32))
    assert_is(nd.cpu().one_hot(3, np.array([2, 0])), np.eye(3, dtype=np.float32)[[2, 0]])
    assert repr(backend_numpy.cpu()) == "needle.cpu()"
    assert hash(backend_numpy.cpu()) == hash(backend_numpy.cpu())


def test_the_device_module() -> None:
    device = nd.cpu()
    _a, _b = array(4, 6), array(4, 6, seed=1)
    a, b, out = (device.Array(24) for _ in range(3))
    device.from_numpy(_a, a)
    device.from_numpy(_b, b)
    at = out.ptr()
    assert a.size == 24

    def result(shape: tuple[int, ...] = (4, 6)) -> np.ndarray:
        found: np.ndarray = device.to_numpy(out, shape, nd.NDArray.compact_strides(shape), 0)
        return found

    functions = {
        "add": np.add,
        "mul": np.multiply,
        "div": np.divide,
        "maximum": np.maximum,
        "eq": np.equal,
        "ge": np.greater_equal,
    }
    for name, fn in functions.items():
        getattr(device, f"ewise_{name}")(a, b, out)
        np.testing.assert_allclose(result(), fn(_a, _b), 1e-5)
        getattr(device, f"scalar_{name}")(a, 0.5, out)
        np.testing.assert_allclose(result(), fn(_a, np.float32(0.5)), 1e-5)
    device.scalar_power(a, 2.0, out)
    np.testing.assert_allclose(result(), _a**2, 1e-5)
    device.ewise_tanh(a, out)
    np.testing.assert_allclose(result(), np.tanh(_a), 1e-5)
    device.compact(a, out, (6, 4), (1, 6), 0)
    np.testing.assert_array_equal(result((6, 4)), _a.T)
    device.scalar_setitem(4, 3.0, out, (4,), (6,), 1)
    assert (result()[:, 1] == 3).all()
    assert out.ptr() == at
    rows = device.Array(4)
    device.reduce_sum(a, rows, 6)
    np.testing.assert_allclose(device.to_numpy(rows, (4,), (1,), 0), _a.sum(1), 1e-5)
    device.reduce_max(a, rows, 6)
    np.testing.assert_array_equal(device.to_numpy(rows, (4,), (1,), 0), _a.max(1))


def test_matmul_of_tiles() -> None:
    device, t = nd.cpu(), nd.cpu().__tile_size__
    a, b = array(2, 3, t, t), array(3, 1, t, t, seed=1)
    c = nd.NDArray.make((2, 1, t, t), device=device)
    handles = (nd.array(a)._handle, nd.array(b)._handle, c._handle)
    device.matmul_tiled(*handles, 2 * t, 3 * t, 1 * t)
    whole = a.transpose(0, 2, 1, 3).reshape(2 * t, 3 * t) @ b.transpose(0, 2, 1, 3).reshape(
        3 * t, t
    )
    expected = whole.reshape(2, t, 1, t).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(c.numpy(), expected, 1e-4, 1e-4)
