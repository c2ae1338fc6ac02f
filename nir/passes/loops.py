"""Loops and branches hold what they need: equal scans become one, and what nobody reads goes.

The gradient of a scan runs it once more, with its carries kept: the two have the same steps, and
one loop gives the results of both. Results that nothing reads leave the regions, and so does what
only they needed: a carry that feeds no other, elements of xs, captures. A carry that no step
changes becomes a capture, and a capture that is a uniform constant is one in the region.

requires: nothing.  ensures: every operand and result of a loop or branch is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nir.frozen import replace
from nir.ir.graph import Graph
from nir.ir.op import Op, Value
from nir.ir.program import Target
from nir.ops import Cond, Full, Scan, WhileLoop
from nir.passes.dce import sweep
from nir.passes.rewrite import map_regions

Env = dict[Value, Value]


def loops(graph: Graph, target: Target) -> Graph:
    """``graph`` with its loops and branches merged and pruned, from the outside in."""
    if all(type(op).regions is Op.regions for op in graph.nodes):
        return graph
    pruned = _prune(_merge(graph))
    return map_regions(pruned, lambda region: loops(region, target))


def _renamed(graph: Graph, nodes: Iterable[Op], env: Env) -> Graph:
    """``graph`` with ``nodes``, which read the values that stand for others in ``env``."""

    def current(v: Value) -> Value:
        while v in env:
            v = env[v]
        return v

    kept = [op.map_operands(current) for op in nodes]
    return graph.with_(nodes=kept, outputs=tuple(map(current, graph.outputs)), plan=None)


# ---- equal scans -------------------------------------------------------------------------------


def _merge(graph: Graph) -> Graph:
    """One scan for all that take the same steps, with the ys of each."""
    first: dict[Any, int] = {}
    nodes: list[Op] = []
    env: Env = {}
    for op in graph.nodes:
        if isinstance(op, Scan) and op.pure:
            at = first.setdefault(_steps(op), len(nodes))
            if at < len(nodes):
                nodes[at] = _joined(nodes[at], op, env)
                continue
        nodes.append(op)
    return _renamed(graph, nodes, env) if env else graph


def _steps(op: Scan) -> Any:
    """Equal for scans that take the same steps, whatever they keep of them."""
    body = op.body.with_(outputs=op.body.outputs[: len(op.init)])
    return op.init, op.xs, op.captures, op.length, op.reverse, body.key


def _joined(a: Any, b: Scan, env: Env) -> Scan:
    """``a`` with the results of ``b`` as well; those that it has already go to ``env``."""
    values = a.body.values
    outputs, results = list(a.body.outputs), list(a.results)
    for k, (v, result) in enumerate(zip(b.body.outputs, b.results, strict=True)):
        twin = values[b.body.number[v]]
        known = [i for i in range(len(a.init), len(outputs)) if outputs[i] is twin]
        if k < len(b.init):
            env[result] = results[k]
        elif known:
            env[result] = results[known[0]]
        else:
            outputs.append(twin)
            results.append(result)
    body = a.body.with_(outputs=outputs, plan=None)
    joined: Scan = replace(a, body=body, results=tuple(results), locs=a.locs | b.locs)
    return joined


# ---- what is not needed ------------------------------------------------------------------------


def _prune(graph: Graph) -> Graph:
    used = set(graph.outputs)
    nodes: list[Op] = []
    env: Env = {}
    derived = _derived(graph)
    for op in reversed(graph.nodes):
        # Dead ops elsewhere are the business of dce.
        if op in derived and op.pure and not any(v in used for v in op.results):
            continue
        match op:
            case Scan():
                op = _pruned_scan(op, used, graph, env)
            case WhileLoop():
                op = _pruned_while(op, used, graph)
            case Cond():
                op = _pruned_cond(op, used, graph)
        nodes.append(op)
        used.update(op.operands)
    if len(nodes) == len(graph.nodes) and all(
        a is b for a, b in zip(reversed(nodes), graph.nodes, strict=True)
    ):
        return graph
    return _renamed(graph, reversed(nodes), env)


def _derived(graph: Graph) -> set[Op]:
    """Loops and branches, and the ops that read what they give."""
    found: set[Op] = set()
    values: set[Value] = set()
    for op in graph.nodes:
        if isinstance(op, (Scan, WhileLoop, Cond)) or any(v in values for v in op.operands):
            found.add(op)
            values.update(op.results)
    return found


def _needed(regions: Sequence[tuple[Graph, Iterable[int]]]) -> set[int]:
    """The inputs that outputs of the regions are computed from (and what effects need)."""
    found: set[int] = set()
    for region, outputs in regions:
        live = {region.outputs[k] for k in outputs}
        for op in reversed(region.nodes):
            if not op.pure or any(v in live for v in op.results):
                live.update(op.operands)
        found.update(i for i, v in enumerate(region.inputs) if v in live)
    return found


def _closure(
    carries: int, outputs: set[int], regions: Sequence[Graph], always: Sequence[Graph] = ()
) -> set[int]:
    """``outputs`` of the last region and the carries that they, or regions ``always``, need."""
    live = set(outputs)
    while True:
        sought = [(region, live) for region in regions] + [(g, (0,)) for g in always]
        more = {i for i in _needed(sought) if i < carries} - live
        if not more:
            return live
        live |= more


def _pruned_scan(op: Scan, used: set[Value], graph: Graph, env: Env) -> Scan:
    n, m = len(op.init), len(op.xs)
    live = _closure(n, {k for k, v in enumerate(op.results) if v in used}, [op.body])
    needed = _needed([(op.body, live)])
    inputs, outputs = op.body.inputs, op.body.outputs
    still = {i for i in range(n) if i in live and outputs[i] is inputs[i]}
    for i in still:
        env[op.results[i]] = op.init[i]
    captures = {inputs[n + m + i]: v for i, v in enumerate(op.captures) if n + m + i in needed}
    captures |= {inputs[i]: op.init[i] for i in still if i in needed}
    body, captures = _with_constants(op.body, captures, graph)
    uniform = {i for i in range(m) if isinstance(graph.producer.get(op.xs[i]), Full)}
    body = _with_uniform(body, {inputs[n + i]: graph.producer[op.xs[i]] for i in uniform})
    keep = [i for i in range(n) if i in live and i not in still]
    xs = [i for i in range(m) if n + i in needed and i not in uniform]
    ys = [k for k in range(n, len(outputs)) if k in live]
    names = dict(zip(inputs, op.body.input_names, strict=True))
    own = [*(inputs[i] for i in keep), *(inputs[n + i] for i in xs), *captures]
    if len(own) == len(inputs) and len(keep) + len(ys) == len(outputs) and body is op.body:
        return op
    body = sweep(
        body.with_(
            inputs=own,
            input_names=[names[v] for v in own],
            outputs=[outputs[k] for k in (*keep, *ys)],
            plan=None,
        )
    )
    return replace(
        op,
        init=tuple(op.init[i] for i in keep),
        xs=tuple(op.xs[i] for i in xs),
        captures=tuple(captures.values()),
        body=body,
        results=tuple(op.results[k] for k in (*keep, *ys)),
    )


def _pruned_while(op: WhileLoop, used: set[Value], graph: Graph) -> WhileLoop:
    n = len(op.init)
    results = {k for k, v in enumerate(op.results) if v in used}
    live = _closure(n, results, [op.body], [op.condition])
    needed = _needed([(op.body, live), (op.condition, (0,))])
    keep = sorted(live)
    kept = [i for i in range(len(op.captures)) if n + i in needed]
    regions = {}
    for name, region in op.regions():
        given = {region.inputs[n + i]: op.captures[i] for i in kept}
        new, rest = _with_constants(region, given, graph)
        regions[name] = (new, rest)
    # A constant is one in both regions, so that both are left with the same captures.
    captures = [v for v in regions["body"][1].values()]
    if len(keep) == n and len(captures) == len(op.captures):
        return op
    new_regions: dict[str, Any] = {}
    for name, (region, rest) in regions.items():
        names = dict(zip(region.inputs, region.input_names, strict=True))
        own = [*(region.inputs[i] for i in keep), *rest]
        outputs = region.outputs if name == "condition" else [region.outputs[k] for k in keep]
        new_regions[name] = sweep(
            region.with_(
                inputs=own, input_names=[names[v] for v in own], outputs=outputs, plan=None
            )
        )
    return replace(
        op,
        init=tuple(op.init[i] for i in keep),
        captures=tuple(captures),
        results=tuple(op.results[k] for k in keep),
        **new_regions,
    )


def _pruned_cond(op: Cond, used: set[Value], graph: Graph) -> Cond:
    keep = [k for k, v in enumerate(op.results) if v in used]
    needed = _needed([(region, keep) for _, region in op.regions()])
    kept = [i for i in range(len(op.captures)) if i in needed]
    regions: dict[str, Any] = {}
    captures: list[Value] = []
    for name, region in op.regions():
        given = {region.inputs[i]: op.captures[i] for i in kept}
        new, rest = _with_constants(region, given, graph)
        captures = list(rest.values())
        names = dict(zip(region.inputs, region.input_names, strict=True))
        regions[name] = sweep(
            new.with_(
                inputs=list(rest),
                input_names=[names[v] for v in rest],
                outputs=[region.outputs[k] for k in keep],
                plan=None,
            )
        )
    if len(keep) == len(op.results) and len(captures) == len(op.captures):
        return op
    results = tuple(op.results[k] for k in keep)
    return replace(op, captures=tuple(captures), results=results, **regions)


def _with_uniform(region: Graph, sources: Mapping[Value, Any]) -> Graph:
    """``region`` with elements of uniform stacks as constants of its own."""
    if not sources:
        return region
    nodes = [replace(source, shape=v.type.shape, results=(v,)) for v, source in sources.items()]
    return region.with_(nodes=[*nodes, *region.nodes], plan=None)


def _with_constants(
    region: Graph, captures: Mapping[Value, Value], graph: Graph
) -> tuple[Graph, dict[Value, Value]]:
    """``region`` with uniform captures (inside: outside) as constants of its own; what is left."""
    left: dict[Value, Value] = {}
    nodes: list[Op] = []
    for inner, outer in captures.items():
        source = graph.producer.get(outer)
        if isinstance(source, Full):
            nodes.append(replace(source, results=(inner,)))
        else:
            left[inner] = outer
    if not nodes:
        return region, left
    return region.with_(nodes=[*nodes, *region.nodes], plan=None), left
