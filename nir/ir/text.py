"""Graphs to text and back: `print_graph`, `parse_graph`, and the same for files."""

from nir.ir.parser import MissingFunction, parse_graph, read_graph
from nir.ir.printer import print_graph, print_op, write_graph
from nir.ir.program_text import print_program

__all__ = [
    "MissingFunction",
    "parse_graph",
    "print_graph",
    "print_op",
    "print_program",
    "read_graph",
    "write_graph",
]
