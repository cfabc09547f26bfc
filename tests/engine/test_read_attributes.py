"""Whatever Python reads while a decode is recorded: changed one by one, each change is seen before the next step.

Reads are watched at every object that the model names: its modules, its configs, and what else hangs on them.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelwright.engine.fingerprint import Fingerprint
from modelwright.engine.model_state import ModelState
from modelwright.ops.backends import cpu as kernels
from tests.engine.engines import engine_of, expected, greedy
from tests.fakes import NOAUX, YARN, tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, tiny_llama

MODELS: dict[str, Callable[[], Any]] = {
    "v2": tiny_v2,
    "v2, noaux": lambda: tiny_v2(base=NOAUX),
    "v2, yarn": lambda: tiny_v2(base=YARN),
    "vl2": tiny_vl2,
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, experts": lambda: tiny_llama(base=MINDFORMERS | {"pad_token_id": None, "moe_config": EXPERTS}),
    "imagegpt": tiny_imagegpt,
}
PROMPT = [3, 9, 4, 12, 7]
needs_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")

Reads = dict[tuple[int, str], Any]
"""By object and name, the object."""


@contextmanager
def watched(kinds: set[type], monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """Every attribute that is read of objects of these classes."""
    reads: Reads = {}

    def watch(kind: type) -> Any:
        read: Any = kind.__getattribute__

        def getattribute(self: Any, name: str) -> Any:
            reads[id(self), name] = self
            return read(self, name)

        return getattribute

    with monkeypatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "__getattribute__", watch(kind), raising=False)
        yield reads


def other(value: Any) -> Any:
    """Something else of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 2 + 1
        case str():
            return value + "x"
        case nn.Parameter():
            return nn.Parameter(value.detach().clone())
        case Tensor():
            return value.clone()
        case torch.dtype():
            return torch.float16 if value != torch.float16 else torch.float32
        case None:
            return nn.Identity()
        case dict() | list() | set() | tuple() if not value:
            return {**value, "more": 1} if isinstance(value, dict) else type(value)([1])
        case dict():
            return type(value)(list(value.items())[1:])
        case list() | tuple():
            return value[1:]
        case nn.Module():
            return copy.deepcopy(value)
        case _:
            return lambda *args: None


@needs_kernels
@pytest.mark.parametrize("name", MODELS)
def test_a_change_of_any_attribute_that_was_read_is_seen(name, monkeypatch):
    model = MODELS[name]()
    decoder = getattr(model, "language", model)
    engine = engine_of(model)
    engine.generate([PROMPT], greedy(3))
    graphs = engine._runner._graphs
    assert graphs is not None
    inputs, _ = graphs._captured[1]
    kinds = {type(each) for each in _objects(decoder)}
    with torch.inference_mode(), watched(kinds, monkeypatch) as reads:
        graphs._forward(inputs)  # which is what was recorded
    taken, changed = Fingerprint.of(decoder), set()
    for (_, attribute), owner in reads.items():
        for own in (vars(owner), *(vars(owner).get(kind) for kind in ("_parameters", "_buffers", "_modules"))):
            if own is not None and attribute in own and not attribute.startswith("__"):
                before = own[attribute]
                own[attribute] = other(before)
                assert not taken.holds(), f"{type(owner).__name__}.{attribute}"
                own[attribute] = before
                assert taken.holds()
                changed.add(attribute)
    assert {"training", "weight", "config", "scale", "_forward_hooks"} <= changed
    assert len(changed) > 30


def _objects(model: nn.Module) -> list[Any]:
    return [*model.modules(), *(each.config for each in model.modules() if hasattr(each, "config"))]


@needs_kernels
def test_what_a_class_says_is_read_anew(monkeypatch):
    """A method that somebody replaces is called at every step; a value of the class is as good as one of a module."""
    model = tiny_llama(base=HUGGING_FACE)
    engine = engine_of(model)

    def check() -> None:
        (result,) = engine.generate([PROMPT], greedy(6))
        assert result.completions[0].tokens == expected(copy.deepcopy(model), PROMPT, 6).tokens

    check()
    kind, calls = type(model.model.layers[0].self_attn), []
    own = kind.forward

    def forward(self: Any, *args: Any) -> Any:
        calls.append(self)
        return own(self, *args) * -1

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", forward)
        check()
        calls.clear()
        engine.generate([PROMPT], greedy(6))
        assert len(calls) == 6 * 2  # passes, layers
    check()
    assert engine._runner._graphs is not None and engine._runner._graphs._captured
    with monkeypatch.context() as patch:
        patch.setattr(type(model.model.norm), "extra", 3, raising=False)
        version = engine._state.version
        check()
        assert engine._state.version == version + 1 and engine._runner._graphs._captured


@needs_kernels
def test_functions_of_somebody_else_are_called_at_every_step():
    """Put among a module's attributes, where what they read cannot be seen: a closure's number, here."""
    model = tiny_llama(base=HUGGING_FACE)
    engine, gain = engine_of(model), [1.0]
    rotary = next(module for module in model.modules() if hasattr(module, "rotate"))
    own = rotary.rotate
    rotary.rotate = lambda *args: own(*args) * gain[0]
    for value in (1.0, 1.5, -2.0):
        gain[0] = value
        (result,) = engine.generate([PROMPT], greedy(6))
        assert result.completions[0].tokens == expected(copy.deepcopy(model), PROMPT, 6).tokens
        assert engine._runner._graphs is not None and not engine._runner._graphs._captured


def test_a_state_is_looked_at_as_a_whole_or_without_numbers():
    model = tiny_llama(base=HUGGING_FACE)
    state = ModelState(model)
    assert state.look() and not state.look() and state.version == 1
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    assert not state.look(contents=False)
    assert state.look() and not state.look() and state.version == 1
    model.model.norm.eps = 0.5
    assert state.look(contents=False) and not state.look() and state.version == 2
