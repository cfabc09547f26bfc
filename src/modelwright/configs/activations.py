"""The names of the activation functions a config may state; not the functions, whose import brings most of torch."""

ACTIVATION_NAMES = (
    "gelu",
    "gelu_10",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_accurate",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "sqrtsoftplus",
    "swish",
    "tanh",
    "prelu",
    "xielu",
)
"""The keys of transformers' `ACT2FN`, in its order."""

SILU_NAMES = ("silu", "swish")
"""Two names of one function."""
