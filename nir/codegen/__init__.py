"""Code generation: fused regions as loop kernels, printed as LLVM IR or C, compiled to blobs."""

from nir.codegen.blob import link
from nir.codegen.c import print_c
from nir.codegen.engine import Compiler, Job, assembly, compile_blob, compile_object, rest
from nir.codegen.llvm import ISA_LEVELS, print_llvm
from nir.codegen.loop import LoopBuffer, LoopKernel
from nir.codegen.lower import lower_fused

# Part of every cache key: changes with the meaning or the form of generated code.
CODEGEN_VERSION = 1

__all__ = [
    "CODEGEN_VERSION", "ISA_LEVELS", "Compiler", "Job", "LoopBuffer", "LoopKernel", "assembly",
    "compile_blob", "compile_object", "link", "lower_fused", "print_c", "print_llvm", "rest",
]  # fmt: skip
