"""What the libraries under torch read of the environment when they are loaded: how threads wait, and what is kept."""

import os
from collections.abc import Mapping

SPINS = 5000
"""Times that a thread of libgomp looks whether the others are done before it sleeps. By itself it looks 300,000 times,
some milliseconds, and where other programs compute on the same cores it takes them from the thread it waits for. On two
idle cores of AVX2 a DeepSeek-V2 of 0.8 billion parameters draws a token in 38 ms with 1,000, in 32 with 5,000 and in 37
with 300,000 (medians of eight requests, in turns); with two loops beside it in 94, 105 and 130 to 170."""
PRODUCTS = 256
"""Of how many kinds of products oneDNN, and torch before it, keep their programs. A kind is a type and three sizes:
each number of rows is one, such as each length of a prompt, and takes half a megabyte. By themselves they keep 1,024,
up to 2.6 GB for one layer; an engine in bf16 that read 400 prompts of any length kept 0.86 GB, with 256 kinds 0.23, and
was as fast."""
_TOLD: Mapping[tuple[str, ...], int] = {
    ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"): SPINS,
    ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"): PRODUCTS,
    ("LRU_CACHE_CAPACITY",): PRODUCTS,
}
"""The first name is set, unless the environment has one of them."""


def tell_libraries() -> None:
    """Say what is above to whatever is loaded later, torch included; what the user said stands."""
    for names, value in _TOLD.items():
        if os.environ.keys().isdisjoint(names):
            os.environ[names[0]] = str(value)
