"""Whatever is added to a module, or put in its place, has its effect: in prompts and decodes, recorded ones and int8.

A model is run as it is, changed while its engine lives, run again, and changed back. What it gives is compared with one
pass of the changed model over the whole sequence, without a cache and with gradients, where torch computes and every
module is called.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.engine.engine import Engine
from modelwright.layers import MoE, RMSNorm, Router, Routing
from tests.engine.engines import engine_of, expected, greedy, record
from tests.fakes import tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, MINDFORMERS, tiny_llama

PROMPT, NEW = [3, 9, 4, 12, 7], 4
FUSED = MINDFORMERS | {"pad_token_id": None, "qkv_concat": True, "qkv_has_bias": True}
MODELS: dict[str, Callable[[], Any]] = {
    "v2": tiny_v2,
    "vl2": tiny_vl2,
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, fused": lambda: tiny_llama(base=FUSED),
    "imagegpt": tiny_imagegpt,
}
LATENT = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "act", "down_proj")
MIXED = (*LATENT, *GATED, "gate", "experts", "shared_experts", "self_attn", "mlp", "input_layernorm", "lm_head")
GROUPED = ("q_proj", "k_proj", "v_proj", "o_proj", *GATED, "self_attn", "mlp", "post_attention_layernorm", "lm_head")
TARGETS = {
    "v2": MIXED,
    "vl2": MIXED,
    "llama": GROUPED,
    "llama, fused": ("qkv_proj", "o_proj", "gate_up_proj", "act", "down_proj", "self_attn", "mlp", "norm", "lm_head"),
    "imagegpt": ("c_attn", "c_proj", "c_fc", "act", "attn", "mlp", "ln_1", "ln_f", "lm_head"),
}
"""What the modules are called that are changed, of the decoder and every layer of it."""
WAYS = ("generate", "eager", "recorded", "int8", "int8 recorded")


class Runs:
    """One model, and what continues a prompt with it."""

    def __init__(self, family: str, way: str):
        self.model, self.way = MODELS[family](), way
        if "int8" in way:
            quantize_model(self.model, "int8")
        self.decoder: Any = getattr(self.model, "language", self.model)
        backend = "auto" if "recorded" in way else "eager"
        self.engine = None if way == "generate" else engine_of(self.model, backend=backend, reuse_prefixes=False)

    def logits(self) -> tuple[list[int], Tensor]:
        """The prompt and all drawn tokens but the last, and the logits ``[NEW, vocabulary]`` of the drawn ones."""
        if self.engine is None:
            found = expected(self.model, PROMPT, NEW)
            return [*PROMPT, *found.tokens[:-1]], found.logits
        recorded = record(self.engine)
        (result,) = self.engine.generate([PROMPT], greedy(NEW))
        del self.engine._runner.run
        drawn = recorded.drawn[result.request]
        return [*PROMPT, *result.completions[0].tokens[:-1]], torch.stack([drawn[i] for i in range(NEW)])

    def check(self) -> Tensor:
        """Compare with one pass of the model as it now is; returns the logits of the prompt."""
        tokens, found = self.logits()
        with torch.enable_grad():
            wanted = self.decoder(torch.tensor([tokens]), use_cache=False).logits[0, -NEW:].detach().float()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        return found[0]

    def captured(self) -> int:
        """How many decodes of the engine are recorded."""
        graphs = None if self.engine is None else self.engine._runner._graphs
        return 0 if graphs is None else len(graphs._captured)

    def named(self, names: Any, kinds: Any = nn.Module) -> dict[str, Any]:
        """The decoder's modules of those names and kinds."""
        modules = self.decoder.named_modules()
        return {name: each for name, each in modules if name.rpartition(".")[2] in names and isinstance(each, kinds)}

    def put(self, name: str, module: nn.Module) -> None:
        """Let another module take the place of one."""
        parent, _, own = name.rpartition(".")
        setattr(self.decoder.get_submodule(parent), own, module)


def louder(out: Any) -> Any:
    """A tensor, the first of several, or a routing's weights, somewhat larger, and moved, as no norm undoes."""
    if isinstance(out, tuple):
        return louder(out[0]), *out[1:]
    return replace(out, weights=out.weights * 1.2) if isinstance(out, Routing) else out * 1.2 + 0.05


class Wrapped(nn.Module):
    """A module in the place of another that it calls, as adapters are."""

    def __init__(self, inner: nn.Module, seen: Counter[str], name: str):
        super().__init__()
        self.inner, self._seen, self._name = inner, seen, name

    def forward(self, *args: Any) -> Any:
        self._seen[self._name] += 1
        return louder(self.inner(*args))


class Louder(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.2


@contextmanager
def hooks(runs: Runs, names: Any, seen: Counter[str]) -> Iterator[None]:
    def hook(name: str, module: nn.Module, args: Any, out: Any) -> Any:
        seen[name] += 1
        return louder(out)

    handles = [each.register_forward_hook(partial(hook, name)) for name, each in runs.named(names).items()]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def pre_hooks(runs: Runs, names: Any, seen: Counter[str]) -> Iterator[None]:
    def hook(name: str, module: nn.Module, args: Any) -> Any:
        seen[name] += 1
        return louder(args)

    handles = [each.register_forward_pre_hook(partial(hook, name)) for name, each in runs.named(names).items()]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def global_hook(runs: Runs, names: Any, seen: Counter[str]) -> Iterator[None]:
    targets = {each: name for name, each in runs.named(names).items()}

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        if module not in targets:
            return None
        seen[targets[module]] += 1
        return louder(out)

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced_forward(runs: Runs, names: Any, seen: Counter[str]) -> Iterator[None]:
    def forward(name: str, own: Callable[..., Any], *args: Any) -> Any:
        seen[name] += 1
        return louder(own(*args))

    found = runs.named(names)
    for name, each in found.items():
        each.forward = partial(forward, name, each.forward)
    yield
    for each in found.values():
        del each.forward


@contextmanager
def swapped(runs: Runs, names: Any, seen: Counter[str]) -> Iterator[None]:
    """All but mixtures of experts, which a layer knows by their class."""
    found = {name: each for name, each in runs.named(names).items() if not isinstance(each, MoE)}
    inner_first = sorted(found, key=lambda name: -name.count("."))
    for name in inner_first:
        runs.put(name, Wrapped(found[name], seen, name))
    yield
    for name in reversed(inner_first):
        runs.put(name, found[name])


@contextmanager
def parametrized(runs: Runs, names: Any, seen: Counter[str]) -> Iterator[None]:
    found = [each for each in runs.named(names).values() if isinstance(each._parameters.get("weight"), nn.Parameter)]
    for each in found:
        parametrize.register_parametrization(each, "weight", Louder())
    yield
    for each in found:
        parametrize.remove_parametrizations(each, "weight", leave_parametrized=False)


@contextmanager
def adapted(runs: Runs, names: Any, seen: Counter[str]) -> Iterator[None]:
    """By peft, wherever it knows the layer; int8 leaves it a latent's projection and the head."""
    layers = runs.named(names, nn.Linear)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(layers), init_lora_weights=False)
    peft.inject_adapter_in_model(config, runs.decoder)
    adapters = {name: each for name, each in runs.decoder.named_modules() if isinstance(each, BaseTunerLayer)}
    assert {name.rpartition(".")[2] for name in adapters} >= {"lm_head", "kv_b_proj"} & {*names}
    yield
    for name, each in adapters.items():
        if "base_layer" not in name:  # an adapter of an adapter's
            runs.put(name, each.get_base_layer())


@contextmanager
def edited(runs: Runs, names: Any, seen: Counter[str]) -> Iterator[None]:
    """Plain numbers of modules: what a norm adds, and how many experts a router picks."""
    kinds: Any = (("eps", RMSNorm, 0.5), ("top_k", Router, 1), ("scaling", Router, 1.5))
    found = [(each, *kind) for each in runs.decoder.modules() for kind in kinds if isinstance(each, kind[1])]
    before = [(each, name, getattr(each, name)) for each, name, *_ in found]
    for each, name, _, value in found:
        setattr(each, name, value)
    yield
    for each, name, value in before:
        setattr(each, name, value)


CHANGES = [hooks, pre_hooks, global_hook, replaced_forward, swapped, parametrized, adapted, edited]


def check(runs: Runs, change: Any, names: Any, recorded: bool = False) -> Counter[str]:
    """Run, change, run, change back, run; returns how often which module was called meanwhile."""
    seen: Counter[str] = Counter()
    before = runs.check()
    assert (runs.captured() > 0) is recorded
    with change(runs, names, seen):
        runs.logits()
        counted = seen.copy()
        after = runs.check()
    assert not torch.allclose(before, after, rtol=1e-3)
    torch.testing.assert_close(runs.check(), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert (runs.captured() > 0) is recorded
    return counted


@pytest.mark.one_in(10)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", MODELS)
def test_changes_of_all_modules_have_their_effect(family, way, change):
    """Whoever counts is called once for each pass: one for the prompt, and one for each token but the last."""
    runs = Runs(family, way)
    seen = check(runs, change, TARGETS[family], recorded="recorded" in way)
    assert set(seen.values()) <= {NEW}
    if change in (hooks, pre_hooks, global_hook, replaced_forward):
        assert set(seen) == set(runs.named(TARGETS[family]))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("change", [hooks, swapped], ids=lambda change: change.__name__)
@pytest.mark.parametrize("way", ["generate", "recorded"])
@pytest.mark.parametrize("family", ["v2", "llama"])
def test_a_change_of_one_module_has_its_effect(family, way, change):
    """Alone among modules that are as they were built, with which it might be joined or absorbed."""
    runs = Runs(family, way)
    for name in TARGETS[family]:
        seen = check(runs, change, [name], recorded=way == "recorded")
        assert seen and set(seen.values()) == {NEW}, name


@pytest.mark.parametrize("family", MODELS)
def test_an_engine_leaves_the_model_as_it_was(family):
    """No attribute of any module is another one before, while it serves, and after it is closed."""
    model = MODELS[family]()

    def attributes() -> dict[tuple[int, str], Any]:
        """By module and name; containers with all that is in them."""
        found = {}
        for number, module in enumerate(model.modules()):
            for name, value in vars(module).items():
                items = value.items() if isinstance(value, dict) else [(None, value)]
                found |= {(number, name, key): inner for key, inner in items}
                found[number, name] = type(value) if isinstance(value, dict) else value
        return found

    def same(now: dict, then: dict) -> bool:
        return now.keys() == then.keys() and all(now[key] is then[key] for key in then)

    before = attributes()
    engine = Engine(model)
    assert same(attributes(), before)
    engine.generate([PROMPT, PROMPT[::-1]], greedy(NEW))
    assert same(attributes(), before)
    engine.close()
    assert same(attributes(), before)
