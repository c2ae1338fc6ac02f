"""`Optimizer`: parameter groups, the state of each parameter, and one step over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nir.errors import NirError
from nir.frontend.functional import realize
from nir.frontend.tensor import Tensor
from nir.ir.location import caller
from nir.ir.types import DType, f32, f64

_DEFAULTS_KEPT_OUT = ("params", "lr")


class ParamGroup(dict[str, Any]):
    """Parameters that share their options; PyTorch's dict, whose "lr" is a 0-d Tensor.

    Assigning a number to "lr" writes it into that Tensor, so that a compiled step sees it;
    ``initial_lr`` holds what was assigned, whatever a schedule makes of it since.
    """

    def __init__(self, options: Mapping[str, Any], lr_dtype: DType) -> None:
        rate = np.asarray(options["lr"], lr_dtype.numpy)
        super().__init__({**options, "lr": Tensor(rate)})
        self.initial_lr = Tensor(rate)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr":
            self.initial_lr.copy_(self._rate(value))
            self.set_lr(value)
        else:
            super().__setitem__(key, value)

    def set_lr(self, value: Any) -> None:
        """Change the rate for now: what a schedule does."""
        self["lr"].copy_(self._rate(value))

    def _rate(self, value: Any) -> Tensor:
        # A stored number: nothing to compute, so nothing to compile.
        if isinstance(value, Tensor):
            return value
        return Tensor(np.asarray(value, self["lr"].dtype.numpy))


class Optimizer:
    """Base of optimisers. A subclass names its slots and defines `update` for one parameter.

    ``params`` are Tensors, or mappings with "params" and options that differ from the defaults.
    Learning rates and the step count are 0-d Tensors and the slots Tensors made here, so that all
    of an optimiser's state is there before the first step is compiled.
    """

    def __init__(self, params: Iterable[Any], **defaults: Any) -> None:
        entries = list(params)
        if not entries:
            raise NirError(f"{type(self).__name__}: expected parameters, got none", caller())
        groups = entries if isinstance(entries[0], Mapping) else [{"params": entries}]
        if not defaults["lr"] >= 0:  # nan neither
            raise NirError(
                f"{type(self).__name__}: expected lr >= 0, got {defaults['lr']}", caller()
            )
        self.param_groups: list[ParamGroup] = []
        self.state: list[dict[str, Tensor]] = []  # slots, in the order of all parameters
        self.steps = Tensor(np.zeros((), np.float32))  # exact up to 2^24, as in PyTorch
        for options in groups:
            self._add_group({**defaults, **options})

    def _add_group(self, options: dict[str, Any]) -> None:
        tensors = list(options["params"])
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for p in tensors:
            if not isinstance(p, Tensor) or not p.dtype.is_float:
                raise NirError(
                    f"{type(self).__name__}: expected float Tensors, got {p!r}", caller()
                )
            if id(p) in known:
                raise NirError(f"{type(self).__name__}: a parameter occurs twice", caller())
            known.add(id(p))
        # The rate is as wide as the widest parameter, and casts down where it is used.
        wide = f64 if any(p.dtype == f64 for p in tensors) else f32
        group = ParamGroup({**options, "params": tensors}, wide)
        self.param_groups.append(group)
        for p in tensors:
            zeros = np.zeros(tuple(p.shape), p.dtype.numpy)
            self.state.append({name: Tensor(zeros.copy()) for name in self.slot_names(group)})

    # ---- what a subclass defines ---------------------------------------------------------------

    def slot_names(self, group: ParamGroup) -> tuple[str, ...]:
        """The Tensors, of the parameter's shape and 0 at first, that go with each parameter."""
        return ()

    def scalars(self, group: ParamGroup) -> tuple[Tensor, ...]:
        """0-d Tensors that every parameter of ``group`` uses in this step; computed once."""
        return (group["lr"],)

    def update(
        self,
        group: ParamGroup,
        scalars: Sequence[Tensor],
        p: Tensor,
        g: Tensor,
        slots: dict[str, Tensor],
    ) -> Tensor:
        """The new value of ``p``, whose gradient is ``g``; new slot values go into ``slots``."""
        raise NotImplementedError(f"{type(self).__name__} must define update")

    # ---- use -----------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient; eagerly this runs one program."""
        self.steps.copy_(self.steps + 1)
        changed = [self.steps]
        slots_of = iter(self.state)
        for group in self.param_groups:
            scalars = self.scalars(group)
            for p, slots in zip(group["params"], slots_of, strict=False):
                if p.grad is None:
                    continue
                new = dict(slots)
                own = [s.to(p.dtype) for s in scalars]
                value = self.update(group, own, p.detach(), p.grad.detach(), new)
                for name, tensor in slots.items():
                    tensor.copy_(new[name])
                p.copy_(value)
                changed += [p, *slots.values()]
        realize(changed)

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"state": {i: slots and step}, "param_groups": options}; the layout is PyTorch's."""
        first, groups = 0, []
        for group in self.param_groups:
            options = {k: v for k, v in group.items() if k not in _DEFAULTS_KEPT_OUT}
            count = len(group["params"])
            numbers = list(range(first, first + count))
            groups.append({**options, "lr": group["lr"].item(), "params": numbers})
            first += count
        step = self.steps.detach()
        state = {
            i: {"step": step, **{name: t.detach() for name, t in slots.items()}}
            for i, slots in enumerate(self.state)
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, here or in PyTorch.

        Raises NirError where groups, parameters or slots do not fit; nothing is changed then.
        """
        sizes = [len(group["params"]) for group in self.param_groups]
        given = [len(group["params"]) for group in state["param_groups"]]
        if sizes != given:
            raise NirError(
                f"load_state_dict: expected groups of {sizes} parameters, got {given}", caller()
            )
        saved = [state["state"].get(i, {}) for i in range(len(self.state))]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, (p, own, new) in enumerate(zip(parameters, self.state, saved, strict=True)):
            for name in own:
                shape = tuple(np.shape(new[name])) if name in new else None
                if new and shape != tuple(p.shape):
                    raise NirError(
                        f"load_state_dict: parameter {i}: expected {name} of shape "
                        f"{tuple(p.shape)}, got {shape or 'none'}",
                        caller(),
                    )
        for own, new in zip(self.state, saved, strict=True):
            for name, tensor in own.items():
                value = np.asarray(new[name]) if new else np.zeros_like(tensor.numpy())
                tensor.copy_(Tensor(value.astype(tensor.dtype.numpy)))
        steps = max((float(np.asarray(s["step"])) for s in saved if "step" in s), default=0.0)
        self.steps.copy_(Tensor(np.asarray(steps, np.float32)))
        for group, options in zip(self.param_groups, state["param_groups"], strict=True):
            for key in group:
                if key != "params" and key in options:
                    value = options[key]
                    group[key] = tuple(value) if isinstance(value, list) else value

    def __repr__(self) -> str:
        lines = [
            ", ".join(f"{k}={v.item() if k == 'lr' else v}" for k, v in g.items() if k != "params")
            for g in self.param_groups
        ]
        return f"{type(self).__name__}({'; '.join(lines)})"
