"""Dimensions: integers, or integer polynomials over symbols in a normal form.

A size is an ``int`` whenever it is known, else a ``Poly``. Polynomials are kept in one normal form
(sorted monomials, no zero coefficients), so equal forms are equal objects in the sense of ``==``,
and unequal forms never unify. Floor division by a positive integer that does not divide exactly
is an atom of its own. Symbols stand for sizes and are therefore >= 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn, TypeAlias

from nir.errors import TraceError
from nir.frozen import Frozen
from nir.ir.location import caller

Atom: TypeAlias = "str | FloorDiv"
Monomial: TypeAlias = "tuple[tuple[Atom, int], ...]"
Dim: TypeAlias = "int | Poly"
Shape: TypeAlias = "tuple[Dim, ...]"


class FloorDiv(Frozen):
    """The atom ``floor(num / den)``; den is a positive integer or a polynomial."""

    num: Poly
    den: Dim

    def __str__(self) -> str:
        return f"(({self.num})//{_paren(self.den)})"


class Poly(Frozen):
    """A non-constant integer polynomial: sorted (monomial, coefficient) terms."""

    terms: tuple[tuple[Monomial, int], ...]

    # Only sizes combine to sizes; a float or a tensor gets its turn, or a TypeError.

    def __add__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Poly)):
            return NotImplemented
        return _from_terms([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1 if isinstance(other, (int, Poly)) else NotImplemented

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other if isinstance(other, (int, Poly)) else NotImplemented

    def __mul__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Poly)):
            return NotImplemented
        return _from_terms(
            (_mul_monomials(m1, m2), c1 * c2) for m1, c1 in self.terms for m2, c2 in _terms(other)
        )

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other) if isinstance(other, (int, Poly)) else NotImplemented

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self) if isinstance(other, (int, Poly)) else NotImplemented

    def _unknown(self, *_: object) -> NoReturn:
        raise TraceError(
            f"the size {self} is symbolic: Python can neither count to it nor compare it; trace "
            "with a number in its place",
            caller(),
        )

    __index__ = __int__ = __float__ = _unknown
    __lt__ = __le__ = __gt__ = __ge__ = _unknown

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            factors = [f"{atom}" if power == 1 else f"{atom}^{power}" for atom, power in monomial]
            if not factors or abs(coefficient) != 1:
                factors.insert(0, str(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+" if parts else ""
            parts.append(sign + "*".join(factors))
        return "".join(parts)

    __repr__ = __str__


def _paren(d: Dim) -> str:
    return str(d) if isinstance(d, int) else f"({d})"


def _atom_key(atom: Atom) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, str(atom))


def _monomial_key(monomial: Monomial) -> tuple[int, tuple[tuple[tuple[int, str], int], ...]]:
    # Highest degree first, constants last: `4*B*S+2*B+1`.
    degree = sum(power for _, power in monomial)
    return -degree, tuple((_atom_key(a), -p) for a, p in monomial)


def _terms(d: Dim) -> tuple[tuple[Monomial, int], ...]:
    return d.terms if isinstance(d, Poly) else (((), int(d)),)


def _from_terms(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    kept = [(m, c) for m, c in total.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return Poly(tuple(sorted(kept, key=lambda t: _monomial_key(t[0]))))


def _mul_monomials(a: Monomial, b: Monomial) -> Monomial:
    powers: dict[Atom, int] = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: _atom_key(item[0])))


def symbol(name: str) -> Poly:
    """The size called ``name``."""
    if not name.isidentifier():
        raise ValueError(f"a symbolic dimension is an identifier, not {name!r}")
    return Poly(((((name, 1),), 1),))


def exact_div(a: Dim, b: Dim) -> Dim | None:
    """a / b where it divides term by term, else None: exact_div(4*B*S, 2*B) is 2*S."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a == 0:
        return 0
    if a == b:
        return 1
    divisor = _terms(b)
    if len(divisor) != 1:
        return _exact_div_poly(a, b)
    (d_monomial, d_coefficient) = divisor[0]
    out = []
    for monomial, coefficient in _terms(a):
        if d_coefficient == 0 or coefficient % d_coefficient:
            return None
        powers = dict(monomial)
        for atom, power in d_monomial:
            if powers.get(atom, 0) < power:
                return None
            powers[atom] -= power
        rest = tuple((atom, power) for atom, power in powers.items() if power)
        out.append(
            (tuple(sorted(rest, key=lambda i: _atom_key(i[0]))), coefficient // d_coefficient)
        )
    return _from_terms(out)


def _exact_div_poly(a: Dim, b: Dim) -> Dim | None:
    # Long division by the leading term; exact or nothing.
    quotient: Dim = 0
    lead = _from_terms(_terms(b)[:1])
    for _ in range(len(_terms(a)) * 4 + 4):
        if a == 0:
            return quotient
        step = exact_div(_from_terms(_terms(a)[:1]), lead)
        if step is None:
            return None
        quotient = quotient + step
        a = a - step * b
    return None


def floordiv(a: Dim, b: Dim) -> Dim:
    """floor(a / b); b > 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    # Whole multiples leave the atom: (4*B+3)//4 is B, since 3//4 is 0.
    if isinstance(b, int):
        whole = _from_terms((m, c // b) for m, c in _terms(a) if c % b == 0 or not m)
        rest = a - whole * b
        if isinstance(rest, int):
            return whole + rest // b
        return whole + Poly(((((FloorDiv(rest, b), 1),), 1),))
    assert isinstance(a, Poly) or isinstance(b, Poly)
    num = a if isinstance(a, Poly) else Poly((((), a),))
    return Poly(((((FloorDiv(num, b), 1),), 1),))


def ceildiv(a: Dim, b: int) -> Dim:
    """ceil(a / b)."""
    return floordiv(a + (b - 1), b)


def prod(dims: Iterable[Dim]) -> Dim:
    """The product of sizes; 1 of none."""
    out: Dim = 1
    for d in dims:
        out = out * d
    return out


def symbols(d: Dim) -> frozenset[str]:
    """The names that occur in ``d``."""
    names: set[str] = set()
    for monomial, _ in _terms(d) if isinstance(d, Poly) else ():
        for atom, _ in monomial:
            names |= {atom} if isinstance(atom, str) else symbols(atom.num) | symbols(atom.den)
    return frozenset(names)


def evaluate(d: Dim, env: Mapping[str, Dim]) -> Dim:
    """``d`` with symbols replaced by ``env``; an int once every symbol has one."""
    if not isinstance(d, Poly):
        return d
    total: Dim = 0
    for monomial, coefficient in d.terms:
        term: Dim = coefficient
        for atom, power in monomial:
            if isinstance(atom, str):
                value = env.get(atom, None)
                value = symbol(atom) if value is None else value
            else:
                value = floordiv(evaluate(atom.num, env), evaluate(atom.den, env))
            for _ in range(power):
                term = term * value
        total = total + term
    return total


def value(d: Dim, env: Mapping[str, int]) -> int:
    """``d`` as a number; KeyError names a symbol that ``env`` lacks."""
    out = evaluate(d, env)
    if isinstance(out, Poly):
        raise KeyError(f"no value for {', '.join(sorted(symbols(out)))} in {d}")
    return out


def numbers(shape: Shape) -> tuple[int, ...]:
    """A shape without symbols, as numbers; KeyError names a symbol."""
    return tuple(value(d, {}) for d in shape)


def dominates(a: Dim, b: Dim) -> bool:
    """True if a >= b for every assignment of non-negative sizes, by comparing coefficients."""
    difference = a - b
    return all(c >= 0 for _, c in _terms(difference))


def upper_bound(a: Dim, b: Dim) -> Dim:
    """A polynomial >= both: the larger coefficient of each monomial."""
    left, right = dict(_terms(a)), dict(_terms(b))
    return _from_terms((m, max(left.get(m, 0), right.get(m, 0))) for m in {**left, **right})
