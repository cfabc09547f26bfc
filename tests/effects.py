"""All that can be seen of a config: the model built from it, its passes, its plan, and the limits of its engine."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modelwright.configs import CheckedConfig
from modelwright.engine.served_model import ServedModel
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.mindformers.names import mindformers_tensors, packing_of
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.planner.device import Devices
from modelwright.planner.plan import plan
from modelwright.planner.report import as_object
from modelwright.serving.defaults import engine_config, sampling_params
from tests.fakes import vl2_inputs

MODELS: dict[type[CheckedConfig], Any] = {
    DeepseekV2Config: DeepseekV2ForCausalLM,
    DeepseekVLV2Config: DeepseekVLV2ForCausalLM,
    ImageGPTConfig: ImageGPTForCausalImageModeling,
    LlamaConfig: LlamaForCausalLM,
}
REFUSALS = (ValueError, RuntimeError, IndexError)


class Recorded(TorchDispatchMode):
    """The operations that were computed, with the types and shapes they gave."""

    def __init__(self):
        super().__init__()
        self.operations: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first: Any = result[0] if isinstance(result, list | tuple) and result else result
        shape = (first.dtype, tuple(first.shape)) if isinstance(first, torch.Tensor) else None
        self.operations.append((str(func), shape))
        return result


def seen_of(config: CheckedConfig) -> "Seen":
    """What the config brings about, by kind; a refusal is what it says."""
    model = _or_refusal(lambda: _build(config))
    kinds: dict[str, Callable[[], Any]] = {
        "model": lambda: model if isinstance(model, str) else _weights(model),
        "run": lambda: _run_of_one_rank(config),
        "engine": lambda: engine_config(config, {}),
        "sampling": lambda: sampling_params(config, {}),
        "plan": lambda: _plan(config),
        "plan over devices": lambda: _layout(config),
    }
    if isinstance(config, LlamaConfig):
        kinds["layout on disk"] = lambda: list(mindformers_tensors(config, packing_of(config)))
    if isinstance(model, str):
        return Seen(kinds)
    generation = model.generation_config.to_dict()
    return Seen(
        kinds
        | {
            "generate": lambda: {name: generation[name] for name in generation if name != "transformers_version"},
            "engine limits": lambda: _limits(model),
            "pass": lambda: _pass(model, training=False),
            "padded pass": lambda: _pass(model, training=False, padded=True),
            "training": lambda: _pass(model, training=True),
            "state after training": lambda: _weights(model),
        }
    )


class Seen:
    """Kinds of things to see, each looked at when it is asked for, in their order: training changes the model."""

    def __init__(self, kinds: dict[str, Callable[[], Any]]):
        self._kinds, self._found = kinds, dict[str, Any]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def get(self, kind: str) -> Any:
        """What is seen of a kind; None where there is no such kind."""
        if kind not in self._kinds:
            return None
        for each, look in self._kinds.items():
            if each not in self._found:
                self._found[each] = _or_refusal(look)
            if each == kind:
                break
        return self._found[kind]


def difference(one: Seen, other: Seen) -> str | None:
    """The first kind of thing that is seen of one config otherwise than of another."""
    return next(
        (kind for kind in {**dict.fromkeys(one), **dict.fromkeys(other)} if not same(one.get(kind), other.get(kind))),
        None,
    )


def same(one: Any, other: Any) -> bool:
    """Whether two things are bit for bit the same, types included."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def _run_of_one_rank(config: CheckedConfig) -> dict[str, Any]:
    """What it states of a run, of that what one rank does."""
    sections = ("batch", "data", "loss", "recompute", "swap")
    return {key: value for key, value in config.run_values().items() if key.partition(".")[0] in sections}


def _or_refusal(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except REFUSALS as error:
        return f"refused: {error}"


def _build(config: CheckedConfig) -> Any:
    torch.manual_seed(0)
    return MODELS[type(config)].from_config(config)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _limits(model: Any) -> tuple[Any, ...]:
    served = ServedModel.of(model.eval())
    return served.context, served.ends, served.padding


def _plan(config: CheckedConfig) -> dict[bool, dict[str, Any]]:
    image = (24, 8) if isinstance(config, DeepseekVLV2Config) else None
    found = {train: as_object(plan(config, train=train, image=image)) for train in (False, True)}
    return {train: {key: each[key] for key in each if key != "fields_without_effect"} for train, each in found.items()}


def _layout(config: CheckedConfig) -> Any:
    """How four devices would share the model."""
    return plan(config, devices=Devices(80 * 2**30, 4)).layout


def _pass(model: Any, training: bool, padded: bool = False) -> dict[str, Any]:
    """One pass with everything that it gives; in training also the loss over a global count, and the gradients."""
    torch.manual_seed(0)
    model.train(training)
    model.zero_grad()
    inputs = _inputs(model)
    if padded and "attention_mask" not in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, :3] = 0
    with Recorded() as recorded:
        if not training:
            with torch.no_grad():
                outputs = model(**inputs)
        else:
            labels = inputs["input_ids"].clone()
            labels[:, 2:4] = -100
            labels[:, 5] = 3
            outputs = model(**inputs, labels=labels, num_items_in_batch=40)
            outputs.loss.backward()
            if not isinstance(model, ImageGPTForCausalImageModeling):
                model.update_router_bias()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    given = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    return {"given": given, "keys": list(outputs), "gradients": gradients, "operations": recorded.operations}


def _inputs(model: Any) -> dict[str, Any]:
    if isinstance(model.config, DeepseekVLV2Config):
        return dict(vl2_inputs([[(2, 1)], [(1, 1)]], count=model.config.picture_tokens))
    ids = torch.randint(4, 16, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[0, 6], ids[1, 3], ids[1, 8] = 2, 2, 7
    return {"input_ids": ids}
