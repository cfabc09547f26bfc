"""Layers that torch's compiler turns into kernels of its own, for training passes alone.

The compiler stands at the seam of :class:`CheckpointedLayer`, around what is recomputed of a layer: modules, names and
passes without gradients stay as they are. Layers of one kind share their graphs, and rows of another length get one
graph for all lengths, so that neither a model's depth nor its data adds to what is compiled.
"""

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from modelwright.attention.dense import DenseAttention
from modelwright.attention.packed import PackedAttention
from modelwright.errors import ConfigError

BACKEND = "inductor"
"""Who makes kernels of graphs."""
GRAPHS = 64
"""Graphs of one function at most, after which torch would compute without them: kinds of layers times kinds of rows."""


def compiling(asked: Any) -> AbstractContextManager[Any]:
    """What a training pass runs in, where ``asked`` says that layers are compiled.

    The number of a layer, which layers hand to attention, then is a variable of their graph and no constant. Dropout
    draws what it draws without a compiler.
    """
    if asked != "layers":
        return nullcontext()
    import torch._dynamo.config  # takes a second, which other runs need not wait for
    import torch._inductor.config

    graphs: Any = torch._dynamo.config
    kernels: Any = torch._inductor.config
    with ExitStack() as stack:
        stack.enter_context(graphs.patch(allow_unspec_int_on_nn_module=True, recompile_limit=GRAPHS))
        stack.enter_context(kernels.patch(fallback_random=True))
        return stack.pop_all()


def compiled_way(device: torch.device) -> Callable[..., Any]:
    """``(function, *inputs) -> output`` of a layer, by the kernels that were made of it.

    Raises:
        ConfigError: see :func:`check_compiler`.
    """
    check_compiler(device)
    from modelwright.training.compiled_attention import in_graph

    run = torch.compile(_called, backend=BACKEND)

    def way(function: Callable[..., Any], x: Tensor, *around: Any) -> Any:
        settled = []
        for each in around:
            if isinstance(each, PackedAttention) and each.spans is not None:
                each = in_graph(each)
            if isinstance(each, DenseAttention | PackedAttention):
                each.settle(x.shape[1], x.device)
            settled.append(each)
        return run(function, x, *settled)

    return way


def check_compiler(device: torch.device) -> None:
    """See that layers can be compiled for a device.

    Raises:
        ConfigError: torch's compiler needs one of C++ for a CPU, or Triton for a GPU, and there is none.
    """
    if device.type == "cpu":
        from torch._inductor import exc
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            subprocess.run([get_cpp_compiler(), "--version"], capture_output=True, check=True)
        except (exc.InvalidCxxCompiler, subprocess.SubprocessError, OSError, RuntimeError) as error:
            raise ConfigError(
                'compile "layers" needs a C++ compiler, and none runs here: install g++ or clang++, name one in CXX, '
                "or set compile false"
            ) from error
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigError(
                f'compile "layers" needs Triton for the device {device.type}, which is not here: install triton, or '
                "set compile false"
            )


def _called(function: Callable[..., Any], *inputs: Any) -> Any:
    return function(*inputs)
