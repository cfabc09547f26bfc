"""The options that set an engine's limits, checked before anything heavy is imported; `defaults` says the rest."""

from dataclasses import dataclass
from typing import Any

from modelwright.errors import RequestError

KV_DTYPES = ("auto", "int8")
BACKENDS = ("auto", "eager", "record", "cudagraph")


@dataclass(frozen=True)
class EngineOptions:
    """The engine's limits, named as on the command line; None is an option that was not given.

    `tensor_parallel` ranks share the model.
    """

    max_batch: int | None = None
    token_budget: int | None = None
    num_pages: int | None = None
    block_size: int | None = None
    kv_dtype: str | None = None
    tensor_parallel: int = 1
    host_pages: int | None = None
    backend: str | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given, under their names in `EngineConfig`."""
        values = vars(self) | {"page_size": self.block_size}
        del values["block_size"], values["tensor_parallel"]
        return {name: value for name, value in values.items() if value is not None}

    def check(self) -> None:
        """Raise a RequestError for the first option out of its range."""
        for name in ("max_batch", "token_budget", "num_pages", "block_size", "tensor_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.host_pages is not None and self.host_pages < 0:
            raise RequestError(f"--host-pages must be at least 0, got {self.host_pages}")
        if self.kv_dtype not in (None, *KV_DTYPES):
            raise RequestError(f"--kv-dtype must be one of {', '.join(KV_DTYPES)}, got {self.kv_dtype!r}")
        if self.backend not in (None, *BACKENDS):
            raise RequestError(f"--backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
