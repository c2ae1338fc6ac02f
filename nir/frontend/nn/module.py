"""`Module`: parameters, buffers and sub-modules found by attribute; PyTorch's names throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from nir.errors import NirError, ShapeError
from nir.frontend.tensor import Tensor
from nir.ir.location import caller


class Parameter(Tensor):
    """A Tensor that a Module counts among its parameters, and that requires a gradient."""

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)


class Module:
    """Base of all layers and models.

    A subclass assigns parameters and sub-modules as attributes and defines ``forward``. Every
    other attribute is plain Python: a compiled function that uses the module is traced again when
    one of them changes (``training``, say).
    """

    training: bool = True

    def __init__(self) -> None:
        self.training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # ---- attributes ----------------------------------------------------------------------------

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Set attribute ``name`` to a tensor that is state but not trained: running statistics.

        A buffer that is not ``persistent`` stays out of `state_dict`.
        """
        self.__dict__.setdefault("_buffers", {})[name] = persistent
        object.__setattr__(self, name, tensor)

    def __setattr__(self, name: str, value: Any) -> None:
        old = self.__dict__.get(name)
        if (
            isinstance(old, Tensor)
            and isinstance(value, Tensor)
            and name in self.__dict__.get("_buffers", ())
        ):
            # A buffer keeps its identity, by which optimisers and compiled functions know it.
            old.copy_(value)
        else:
            object.__setattr__(self, name, value)

    # ---- walks ---------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(attribute, sub-module) of each direct sub-module, in order of assignment."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, module) of this module ("") and of all below it, each module once."""
        yield from _walk(self, prefix, set())

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter), a shared parameter under its first path only."""
        return _once(self._tensors(lambda _, v, _n: isinstance(v, Parameter)))

    def parameters(self) -> Iterator[Parameter]:
        return (p for _, p in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return _once(self._tensors(_is_buffer))

    def buffers(self) -> Iterator[Tensor]:
        return (b for _, b in self.named_buffers())

    def _tensors(self, keep: Callable[[Module, Any, str], bool]) -> Iterator[tuple[str, Any]]:
        for path, module in self.named_modules():
            dot = f"{path}." if path else ""
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and keep(module, value, name):
                    yield dot + name, value

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Path -> parameter or persistent buffer, by PyTorch's paths."""
        return {path: value.detach() for path, value in self._tensors(_is_saved)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy the values of ``state`` (Tensors, arrays or torch tensors) in.

        Raises ShapeError for a value of another shape and, if ``strict``, NirError where a path is
        missing or unknown; nothing is changed then.
        """
        own = dict(self._tensors(_is_saved))
        missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
        if strict and (missing or unexpected):
            raise NirError(
                f"load_state_dict: missing {sorted(missing)}, unexpected {sorted(unexpected)}",
                caller(),
            )
        values = {path: _as_array(state[path]) for path in own if path in state}
        for path, value in values.items():
            if value.shape != tuple(own[path].shape):
                raise ShapeError(
                    f"load_state_dict: {path}: expected shape {tuple(own[path].shape)}, "
                    f"got {value.shape}",
                    caller(),
                )
        for path, value in values.items():
            own[path].copy_(Tensor(value).to(own[path].dtype))

    # ---- modes ---------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set ``training`` here and below: dropout and batch norm depend on it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, target: Any) -> Self:
        """Move floating-point state to a dtype, or all state to a device, in place; grads too."""
        for _, tensor in self._tensors(lambda *_: True):
            if tensor.dtype.is_float or _is_device(target):
                tensor.data = tensor.to(target)
                if tensor.grad is not None:
                    tensor.grad = tensor.grad.to(target)
        return self

    def apply(self, fn: Callable[[Module], object]) -> Self:
        """Call ``fn`` on every module, children first."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # ---- text ----------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The arguments to show in ``repr``."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()
        ]
        inner = "".join(f"\n  {line}" for line in lines) + "\n" if lines else ""
        return f"{type(self).__name__}({self.extra_repr()}{inner})"


def _walk(module: Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield prefix, module
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}.{name}" if prefix else name, seen)


def _is_buffer(module: Module, _: Any, name: str) -> bool:
    return name in module.__dict__.get("_buffers", ())


def _is_saved(module: Module, value: Any, name: str) -> bool:
    persistent: bool = module.__dict__.get("_buffers", {}).get(name, False)
    return isinstance(value, Parameter) or persistent


def _once(named: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for path, value in named:
        if id(value) not in seen:
            seen.add(id(value))
            yield path, value


def _is_device(target: Any) -> bool:
    return isinstance(target, str) and target.partition(":")[0] in ("cpu", "cuda")


def _as_array(value: Any) -> np.ndarray:
    # torch tensors that require a gradient refuse to become arrays.
    return np.asarray(value.detach() if hasattr(value, "detach") else value)


class Sequential(Module):
    """The modules one after the other; their paths are "0", "1", ..."""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __getitem__(self, index: int) -> Module:
        return list(self.children())[index]

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


class ModuleList(Module):
    """A list of modules, with paths "0", "1", ...; it has no forward of its own."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Self:
        setattr(self, str(len(self)), module)
        return self

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __getitem__(self, index: int) -> Module:
        return list(self.children())[index]


class Residual(Module):
    """x + fn(x)."""

    def __init__(self, fn: Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return x + self.fn(x)


class Identity(Module):
    """x."""

    def forward(self, x: Any) -> Any:
        return x


class Flatten(Module):
    """Axes ``start_dim`` to ``end_dim`` become one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        return x.flatten(self.start_dim, self.end_dim)
