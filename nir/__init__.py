"""nir: a graph-IR compiler stack for machine learning.

Trace and compile models from Python, train them in compiled steps, export them to packages that run
without this code, and read every stage of the way as text.
"""

import sys

from nir.errors import NirError
from nir.frontend import data, init, nn, optim
from nir.frontend.checkpoint import load_checkpoint, save_checkpoint
from nir.frontend.compiled import compile
from nir.frontend.control import cond, custom_vjp, host_call, scan, while_loop
from nir.frontend.flush import compile_count, set_default_target
from nir.frontend.functional import (
    arange, argsort, cat, constant, exp, eye, from_dlpack, from_numpy, full, full_like, linspace,
    log, matmul, maximum, minimum, ones, ones_like, pad, realize, sort, sqrt, stack, stop_gradient,
    tanh, tensor, topk, where, zeros, zeros_like,
)  # fmt: skip
from nir.frontend.grad import grad, jacobian, value_and_grad, vjp
from nir.frontend.jit import jit
from nir.frontend.lazy import enable_grad, no_grad, set_grad_enabled
from nir.frontend.pytree import register_pytree
from nir.frontend.recompute import checkpoint
from nir.frontend.random import (
    Generator, bernoulli, manual_seed, rand, rand_like, randint, randn, randn_like, randperm,
)  # fmt: skip
from nir.frontend.spec import spec
from nir.frontend.tensor import Tensor
from nir.frontend.trace import trace
from nir.ir.types import bf16 as bfloat16
from nir.ir.types import bool_
from nir.ir.types import f16 as float16
from nir.ir.types import f32 as float32
from nir.ir.types import f64 as float64
from nir.ir.types import i8 as int8
from nir.ir.types import i16 as int16
from nir.ir.types import i32 as int32
from nir.ir.types import i64 as int64
from nir.ir.types import u8 as uint8
from nir.runtime import get_num_threads, load, set_num_threads

# `from nir.nn import functional` reads like PyTorch's; the modules live in the front end.
sys.modules |= {f"{__name__}.{m.__name__.rpartition('.')[2]}": m for m in (data, init, nn, optim)}
