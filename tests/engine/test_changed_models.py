"""One engine through the life of a model: whatever changes between calls or steps, it serves the model of then.

The oracle is `generate()` on a deep copy, which remembers nothing. Prompts are longer than a page and begin alike, so
that keys of an earlier state would be found again if they could be.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.engine.engine import Engine
from modelwright.hf.modules import Conv1D
from modelwright.layers import RMSNorm, Router
from modelwright.layers.linear import Linear
from tests.engine.engines import check_equal, check_idle, engine_of, expected, greedy, record
from tests.fakes import NOAUX, YARN, tiny_v2, tiny_vl2, vl2_inputs
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, MINDFORMERS, tiny_llama

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(pattern keys did not match|Already found a .peft_config|fan_in_fan_out).*"
)

NEW = 3
LINEAR = (Linear, nn.Linear, Conv1D)
PROMPT = [3, 9, 4, 12, 7, 1, 8, 8, 5, 11, 2, 6, 13]
WIDE = {"hidden_size": 64, "intermediate_size": 64}
FUSED = MINDFORMERS | {"pad_token_id": None, "qkv_concat": True, "qkv_has_bias": True}
FAMILIES: dict[str, Callable[[], Any]] = {
    "v2": tiny_v2,
    "v2, noaux": lambda: tiny_v2(base=NOAUX),
    "v2, yarn": lambda: tiny_v2(base=YARN),
    "v2, int8": lambda: quantized(tiny_v2()),
    "vl2": tiny_vl2,
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, fused": lambda: tiny_llama(base=FUSED),
    "llama, int4": lambda: quantized(tiny_llama(base=HUGGING_FACE | WIDE), "int4"),
    "imagegpt": tiny_imagegpt,
}


def quantized(model: Any, weights: str = "int8") -> Any:
    quantize_model(model, weights)
    return model


@dataclass
class Life:
    """A model and the one engine that serves it."""

    model: Any
    backend: str = "auto"
    steer: float = 1.0
    handles: list[Any] = field(default_factory=list)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = engine_of(self.model, backend=self.backend, token_budget=64)

    @property
    def decoder(self) -> Any:
        return getattr(self.model, "language", self.model)

    def prompts(self) -> list[Any]:
        """Two texts that begin alike, and a picture where it is seen."""
        texts = [PROMPT, [*PROMPT[:9], 4, 4]]
        return [*texts, vl2_inputs([[(2, 1)]])] if self.decoder is not self.model else texts

    def check(self) -> None:
        """All prompts at once, the greedy tokens and the scores that each is drawn from."""
        fresh, recorded, dtype = copy.deepcopy(self.model), record(self.engine), self.decoder.cache_dtype()
        prompts = [_cast(prompt, dtype) for prompt in self.prompts()]
        results = self.engine.generate(prompts, greedy(NEW))
        del self.engine._runner.run
        for prompt, result in zip(prompts, results, strict=True):
            inputs = prompt if isinstance(prompt, dict) else {"input_ids": prompt}
            rest = {name: part for name, part in inputs.items() if name != "input_ids"}
            wanted = expected(fresh, inputs["input_ids"], NEW, **rest)
            within = 2e-4 * max(1.0, wanted.logits.abs().max().item())
            check_equal(result.completions[0].tokens, recorded.drawn[result.request], wanted, within)
        check_idle(self.engine)


def _cast(prompt: Any, dtype: torch.dtype) -> Any:
    return prompt if isinstance(prompt, list) else prompt | {"images": prompt["images"].to(dtype)}


def weights(life: Life) -> list[Tensor]:
    """All that a model computes with: the picture's parts too, and the steps and scales of quantized layers."""
    return [each for each in (*life.model.parameters(), *life.model.buffers()) if each.is_floating_point()]


def moved(weight: Tensor, seed: int = 0) -> Tensor:
    """Somewhat other numbers, near enough that scores stay what they can be compared as."""
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + weight.numel()))
    return weight.detach() * 1.1 + 0.02 * noise.to(weight)


def in_place(life: Life) -> None:
    with torch.no_grad():
        for weight in weights(life):
            weight.copy_(moved(weight))


def in_inference(life: Life) -> None:
    with torch.inference_mode():
        for weight in weights(life):
            weight.mul_(0.95)


def one_weight(life: Life) -> None:
    """Of the first layer, so that all keys but its own depend on it."""
    with torch.no_grad():
        first = [weight for name, weight in life.decoder.named_parameters() if ".0." in name]
        first[-1].add_(0.1)


def through_data(life: Life) -> None:
    """Torch does not count that."""
    for weight in weights(life):
        weight.data.mul_(0.9)


def through_numpy(life: Life) -> None:
    for weight in life.model.parameters():
        if weight.dtype != torch.bfloat16:
            weight.detach().numpy()[...] *= 1.05


def other_memory(life: Life) -> None:
    for weight in weights(life):
        weight.data = moved(weight)


def loaded(life: Life) -> None:
    state = {name: moved(x) if x.is_floating_point() else x for name, x in life.model.state_dict().items()}
    life.model.load_state_dict(state)


def assigned(life: Life) -> None:
    state = {name: moved(x) if x.is_floating_point() else x for name, x in life.model.state_dict().items()}
    life.model.load_state_dict(state, assign=True)


def stepped(make: Callable[..., torch.optim.Optimizer]) -> Callable[[Life], None]:
    def change(life: Life) -> None:
        trained = [weight.requires_grad_() for weight in life.model.parameters()]
        for weight in trained:
            weight.grad = moved(weight)
        make(trained).step()
        for weight in trained:
            weight.grad = None

    return change


def stored_steps(life: Life) -> None:
    """The integers of quantized layers."""
    with torch.no_grad():
        for each in life.model.buffers():
            if each.dtype in (torch.int8, torch.uint8):
                each.copy_(each.flip(-1))


def pictures_only(life: Life) -> None:
    if life.decoder is not life.model:
        with torch.no_grad():
            for name, weight in life.model.named_parameters():
                if not name.startswith("language"):
                    weight.mul_(1.1)


def adapters(life: Life) -> list[Any]:
    return [module for module in life.decoder.modules() if isinstance(module, BaseTunerLayer)]


def adapted(life: Life, name: str = "default") -> None:
    """By peft, every linear layer that it knows; once more under another name."""
    names = [each for each, module in life.decoder.named_modules() if isinstance(module, LINEAR) and "lora" not in each]
    if adapters(life):
        names = [each.removesuffix(".base_layer") for each in names]
        name = f"adapter{len(adapters(life)[0].scaling)}"
    torch.manual_seed(len(name))
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=names, init_lora_weights=False)
    peft.inject_adapter_in_model(config, life.decoder, adapter_name=name)
    life.decoder.to(life.decoder.cache_dtype())
    life.model.eval()


def disabled(life: Life) -> None:
    for each in adapters(life):
        each.enable_adapters(each.disable_adapters)


def switched(life: Life) -> None:
    for each in adapters(life):
        if not each.merged:
            each.set_adapter([name for name in each.scaling if name not in each.active_adapters][:1] or ["default"])


def scaled(life: Life) -> None:
    for each in adapters(life):
        each.scale_layer(1.5)


def merged(life: Life) -> None:
    for each in adapters(life):
        each.unmerge() if each.merged else each.merge()


def unloaded(life: Life) -> None:
    outermost = [name for name, each in life.decoder.named_modules() if isinstance(each, BaseTunerLayer)]
    for name in (name for name in outermost if "base_layer" not in name):
        each = life.decoder.get_submodule(name)
        if each.merged:
            each.unmerge()
        parent, _, own = name.rpartition(".")
        setattr(life.decoder.get_submodule(parent), own, each.get_base_layer())


def steered(life: Life) -> None:
    """The first layer's output, along a direction and as far as a number says that the hook looks up."""
    layer = next(module for name, module in life.decoder.named_modules() if name.endswith(".0"))

    def steer(x: Tensor) -> Tensor:
        return x + 0.5 * life.steer * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)

    def hook(module: Any, args: Any, out: Any) -> Any:
        return (steer(out[0]), *out[1:]) if isinstance(out, tuple) else steer(out)

    life.handles.append(layer.register_forward_hook(hook))


def steered_otherwise(life: Life) -> None:
    life.steer += 0.5


def hooked_everywhere(life: Life) -> None:
    def hook(module: Any, args: Any, out: Any) -> Any:
        return out * life.steer if isinstance(module, RMSNorm | nn.LayerNorm) else None

    life.handles.append(register_module_forward_hook(hook))


def unhooked(life: Life) -> None:
    while life.handles:
        life.handles.pop().remove()


def replaced(life: Life) -> None:
    """The `forward` of one module, by what reads a number from elsewhere."""
    norm = next(module for module in life.decoder.modules() if isinstance(module, RMSNorm))
    kind = type(norm)
    norm.forward = lambda x: kind.forward(norm, x) * life.steer


def restored(life: Life) -> None:
    for module in life.decoder.modules():
        module.__dict__.pop("forward", None)


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.9


def parametrized(life: Life) -> None:
    norm = next(module for module in life.decoder.modules() if isinstance(module, RMSNorm))
    if parametrize.is_parametrized(norm):
        parametrize.remove_parametrizations(norm, "weight")
    else:
        parametrize.register_parametrization(norm, "weight", Scaled())


def edited(life: Life) -> None:
    """Plain numbers of norms, routers and attention."""
    for module in life.decoder.modules():
        if isinstance(module, RMSNorm):
            vars(module)["eps"] *= 2
        if isinstance(module, Router):
            module.top_k, module.scaling = 3 - module.top_k, module.scaling * 1.1
        if isinstance(getattr(module, "scale", None), float):
            vars(module)["scale"] *= 1.1


def wider(life: Life) -> None:
    """Between single and double precision, whose scores can be compared closely."""
    life.model.to(torch.float32 if life.decoder.cache_dtype() == torch.float64 else torch.float64)


CHANGES: dict[str, Callable[[Life], None]] = {
    "in place": in_place,
    "in inference mode": in_inference,
    "one weight": one_weight,
    "through data": through_data,
    "through numpy": through_numpy,
    "other memory": other_memory,
    "loaded": loaded,
    "assigned": assigned,
    "AdamW": stepped(lambda trained: torch.optim.AdamW(trained, lr=1e-2)),
    "AdamW, fused": stepped(lambda trained: torch.optim.AdamW(trained, lr=1e-2, fused=True)),
    "SGD": stepped(lambda trained: torch.optim.SGD(trained, lr=1e-2, momentum=0.9)),
    "stored steps": stored_steps,
    "pictures": pictures_only,
    "adapted": adapted,
    "disabled": disabled,
    "switched": switched,
    "scaled": scaled,
    "merged": merged,
    "unloaded": unloaded,
    "steered": steered,
    "steered otherwise": steered_otherwise,
    "hooked everywhere": hooked_everywhere,
    "unhooked": unhooked,
    "replaced": replaced,
    "restored": restored,
    "parametrized": parametrized,
    "edited": edited,
    "wider": wider,
}
"""Each finds what it needs or does nothing, so that they can follow each other in any order."""


@contextmanager
def life_of(family: str, backend: str = "auto") -> Iterator[Life]:
    life = Life(FAMILIES[family](), backend)
    try:
        yield life
    finally:
        unhooked(life)


def check_in_order(family: str, changes: Any, backend: str = "auto") -> None:
    with life_of(family, backend) as life:
        life.check()
        for name in changes:
            CHANGES[name](life)
            life.check()


SHORT = [
    *("adapted", "disabled", "disabled", "merged", "merged", "scaled", "adapted", "switched", "unloaded"),
    *("steered", "steered otherwise", "unhooked", "through data", "edited", "pictures", "wider", "AdamW, fused"),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("family", ["v2", "llama"])
def test_each_change_is_followed(family):
    check_in_order(family, [*SHORT, *(name for name in CHANGES if name not in SHORT)])


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_each_change_is_followed_by_all_families(family, backend):
    check_in_order(family, [*SHORT, *(name for name in CHANGES if name not in SHORT)], backend)


ORDERS = st.lists(st.sampled_from(list(CHANGES)), min_size=1, max_size=5)


@pytest.mark.slow
@given(family=st.sampled_from(list(FAMILIES)), changes=ORDERS, backend=st.sampled_from(["auto", "eager"]))
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
def test_changes_in_any_order_are_followed(family, changes, backend):
    check_in_order(family, changes, backend)


@given(family=st.sampled_from(list(FAMILIES)), changes=ORDERS, backend=st.sampled_from(["auto", "eager"]))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.slow
def test_many_changes_in_any_order_are_followed(family, changes, backend):
    check_in_order(family, changes, backend)


def continued(model: Any, changes: Any) -> Tensor:
    """The logits of a token after each change, by one cache: keys stay what they were when they were computed."""
    cache, rows, ids = None, [], torch.tensor([PROMPT])
    with torch.no_grad():
        for change in changes:
            change()
            out = model(ids, past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            rows.append(out.logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["v2", "v2, int8", "llama", "imagegpt"])
def test_changes_between_the_steps_of_a_request_are_followed(family):
    """Who runs goes on with its keys; what it computes from then on is by the model of then. Others find none of it."""
    steps = ["in place", "steered", "steered otherwise", "unhooked", "replaced", "restored", "edited", "through data"]
    with life_of(family) as life, life_of(family) as other:
        recorded = record(life.engine)
        life.engine.add_request(PROMPT, greedy(len(steps) + 1, min_tokens=0, ignore_eos=True), id="one")
        life.engine.step()
        for name in steps:
            CHANGES[name](life)
            life.engine.step()
        found = torch.stack([recorded.drawn["one"][number] for number in range(len(steps) + 1)])
        before = [lambda: None, *(lambda name=name: CHANGES[name](other) for name in steps)]
        torch.testing.assert_close(found, continued(other.model, before), atol=2e-4 * float(found.abs().max()), rtol=0)
        del life.engine._runner.run
        life.check()


def test_pages_of_a_state_that_was_undone_meanwhile_are_not_found():
    """A token computed while an adapter was off lies in a page of the prompt that another one continues."""
    with life_of("llama") as life:
        adapted(life)
        (result,) = life.engine.generate([PROMPT], greedy(8))
        life.engine.forget_prefixes()
        life.engine.add_request(PROMPT, greedy(8), id="one")
        for step in range(8):
            if step in (3, 4):
                disabled(life)
            life.engine.step()
        longer = [*PROMPT, *result.completions[0].tokens[:6]]
        wanted = expected(copy.deepcopy(life.model), longer, NEW)
        recorded = record(life.engine)
        (found,) = life.engine.generate([longer], greedy(NEW))
        check_equal(found.completions[0].tokens, recorded.drawn[found.request], wanted, 1e-3)


def found_pages(life: Life) -> int:
    """How many pages the prompt finds when it is asked again."""
    before = life.engine._scheduler.pool.usage.pages_found
    life.engine.generate([PROMPT], greedy(2))
    return life.engine._scheduler.pool.usage.pages_found - before


@pytest.mark.one_in(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_stays_as_it_is_finds_its_pages(family):
    """With adapters too, whose state can be seen; not while hooks are there, which are to be called for every token.

    An adapter of stacked experts puts other weights in their place at every pass, as if they changed.
    """
    with life_of(family) as life:
        assert [found_pages(life) for _ in range(3)] == [0, 3, 3]
        adapted(life)
        stacks = any(type(each).__name__ == "ParamWrapper" for each in life.decoder.modules())
        assert [found_pages(life) for _ in range(3)] == ([0, 0, 0] if stacks else [0, 3, 3])
        unloaded(life)
        steered(life)
        assert [found_pages(life) for _ in range(3)] == [0, 0, 0]
        unhooked(life)
        assert [found_pages(life) for _ in range(3)] == [0, 3, 3]


@pytest.mark.parametrize("family", ["v2", "vl2", "llama", "imagegpt"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_hook_that_counts_sees_every_token(family, everywhere):
    """Those of prompts that were read before, those of a second request beside the first, and all decodes."""
    seen: list[int] = []
    with life_of(family) as life:
        life.engine.generate([PROMPT], greedy(4))
        norm = next(module for module in life.decoder.modules() if isinstance(module, RMSNorm))

        def hook(module: Any, args: Any, out: Any) -> None:
            if module is norm:
                seen.append(out.shape[-2])

        life.handles.append(register_module_forward_hook(hook) if everywhere else norm.register_forward_hook(hook))
        for _ in range(2):
            seen.clear()
            life.engine.generate([PROMPT, PROMPT], greedy(4))
            assert sum(seen) == 2 * (len(PROMPT) + 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["v2", "vl2", "llama", "imagegpt"])
def test_pages_take_the_type_that_the_model_takes(family, dtype):
    """A request that runs meanwhile is computed again, and all is as in an engine that was made after the change."""
    with life_of(family) as life:
        life.engine.add_request(PROMPT, greedy(6), id="one")
        life.engine.step()
        life.model.to(dtype)
        drawn = []
        while life.engine.has_work:
            drawn += [token for update in life.engine.step() for token in update.tokens]
        assert len(drawn) == 5
        assert all(pool.keys.rows.dtype == dtype for pool in life.engine._runner._pools)
        recorded, fresh = [], [life.engine, engine_of(life.model, backend=life.backend, token_budget=64)]
        for engine in fresh:
            drawn_from = record(engine)
            (result,) = engine.generate([PROMPT[::-1]], greedy(4))
            recorded.append(torch.stack([drawn_from.drawn[result.request][number] for number in range(4)]))
        assert torch.equal(*recorded)


def test_ends_and_vocabulary_are_those_of_then():
    with life_of("llama") as life:
        tokens = life.engine.generate([PROMPT], greedy(6))[0].completions[0].tokens
        life.model.generation_config.eos_token_id = tokens[2]
        (result,) = life.engine.generate([PROMPT], greedy(6, min_tokens=0))
        assert result.completions[0].tokens == tokens[: tokens.index(tokens[2]) + 1]
        life.model.resize_token_embeddings(70, mean_resizing=False)
        (result,) = life.engine.generate([[*PROMPT, 69]], greedy(3))
        assert result.completions[0].tokens == expected(copy.deepcopy(life.model), [*PROMPT, 69], 3).tokens


@pytest.mark.one_in(4)
@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("family", ["v2", "vl2", "llama", "llama, fused", "imagegpt"])
def test_an_engine_within_autocast_gives_what_generate_gives_there(family, backend):
    """What it computed outside is not found inside, and the reverse; nor is a weight used as it was cast before."""
    with life_of(family, backend) as life:
        life.check()
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                for change in (lambda life: None, in_place, through_data):
                    change(life)
                    wanted = expected(copy.deepcopy(life.model), PROMPT, NEW)
                    recorded = record(life.engine)
                    (result,) = life.engine.generate([PROMPT], greedy(NEW))
                    del life.engine._runner.run
                    found = torch.stack([recorded.drawn[result.request][number] for number in range(NEW)])
                    within = 0.04 * float(wanted.logits.abs().max())
                    torch.testing.assert_close(found, wanted.logits, atol=within, rtol=0)
            life.check()
