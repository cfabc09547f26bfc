"""onnxruntime against PyTorch: the same numbers over drawn shapes, and the same greedy tokens.

How far the two may be apart depends on the model: where a large network magnifies what float32 rounds, PyTorch itself
is far from float64, and onnxruntime is judged by that distance.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelwright.errors import CheckpointError
from modelwright.export.graphs import OnnxConfig, Pass, onnx_config_class
from modelwright.export.manifest import LOGITS_TO_KEEP, Manifest
from modelwright.export.session import DecoderSession, open_session

TOLERANCES = {"float32": (1e-4, 0.0), "float16": (2e-2, 2e-2)}
"""By type, what numbers may differ by: this much, or this share of the output's largest number if that is more."""
TIMES_OWN_ERROR = 10
"""How many times PyTorch's own distance from float64 the two may be apart, where that is more."""
GREEDY_TOKENS = 32
PROMPT_TOKENS = 4
FAR = 256


@dataclass(frozen=True)
class Shape:
    """The lengths of one comparison; with ``padded``, rows begin with padding of drawn lengths."""

    batch: int
    sequence: int
    past: int
    padded: bool = False

    def __str__(self) -> str:
        padding = ", left padding" if self.padded else ""
        return f"batch {self.batch}, sequence {self.sequence}, past {self.past}{padding}"


@dataclass(frozen=True)
class Delta:
    """The largest difference seen in one output, and the shape it was seen at.

    Attributes:
        from_float64: how far onnxruntime and PyTorch are from float64 there; None where they are too close to ask.
    """

    output: str
    largest: float
    shape: Shape | str
    from_float64: tuple[float, float] | None = None


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        dtype: that of both models.
        draws: how many shapes were compared.
        deltas: the largest difference of every output, in the graph's order.
        greedy_tokens: how many greedy choices were compared, all equal but for ``ties``.
        ties: choices between scores that lie closer to each other than the tolerance tells apart.
    """

    dtype: str
    draws: int
    deltas: tuple[Delta, ...]
    greedy_tokens: int
    ties: int

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max(delta.largest for delta in self.deltas)


def verify_onnx(
    folder: str | Path, model: Any, draws: int = 12, seed: int = 0, threads: int | None = None
) -> Verification:
    """Compare the graphs of ``folder`` with ``model``, the PyTorch model they were made from, in the same type.

    Raises:
        CheckpointError: an output differs by more than its type's tolerance and, in float32, than ten times PyTorch's
            own distance from float64, or a greedy token differs; the message names the output, the shape and both
            values.
    """
    folder = Path(folder)
    config = onnx_config_class(type(model))(model.config)
    manifest = Manifest.read(folder)
    decoder = DecoderSession(folder, manifest, threads)
    comparison = Comparison(config, model, decoder, np.random.default_rng(seed))
    with evaluating(model):
        for shape in comparison.shapes(draws):
            comparison.compare(shape)
        tokens, ties = comparison.greedy()
        sessions: dict[str, Any] = {}
        for number, other in enumerate(_other_passes(config, model, seed)):
            if other.graph not in sessions:
                sessions[other.graph] = open_session(folder / manifest.graphs[other.graph], threads)

            def in_float64(number: int = number) -> Mapping[str, Tensor]:
                return next(islice(_other_passes(config, comparison.wide, seed), number, None)).outputs

            comparison.check(other.shape, outputs_of(sessions[other.graph], other.inputs), other.outputs, in_float64)
    return Verification(manifest.dtype, draws, tuple(comparison.worst.values()), tokens, ties)


def _other_passes(config: OnnxConfig, model: Any, seed: int) -> Iterator[Pass]:
    """The same passes for every type of a model."""
    return config.other_passes(model, torch.Generator().manual_seed(seed))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """``model`` in evaluation mode, each part as it was afterwards."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class Comparison:
    """One decoder graph beside the model it was made from; ``worst`` gathers the largest differences."""

    def __init__(self, config: OnnxConfig, model: Any, decoder: DecoderSession, random: np.random.Generator):
        self.config, self.model, self.decoder, self.random = config, model, decoder, random
        self.worst: dict[str, Delta] = {}
        self._wide: Any = None
        self.limit = config.max_positions or 2 * FAR

    def shapes(self, draws: int) -> Iterator[Shape]:
        """The corners first (one token, no past, a long past), then lengths by chance; at most ``limit`` tokens."""
        corners = [Shape(1, 1, 0), Shape(2, 5, 0, True), Shape(1, 1, min(FAR, self.limit - 1)), Shape(3, 1, 4, True)]
        for number in range(draws):
            batch, sequence, past = (int(self.random.integers(*ends)) for ends in ((1, 5), (1, 9), (0, 25)))
            drawn = Shape(batch, sequence, past, padded=number % 2 == 0)
            shape = corners[number] if number < len(corners) else drawn
            sequence = min(shape.sequence, self.limit)
            past = min(shape.past, self.limit - sequence)
            padded = shape.padded and self.config.takes_mask and sequence + past > 1
            yield Shape(shape.batch, sequence, past, padded)

    def compare(self, shape: Shape) -> None:
        """Draw inputs of this shape and compare every output."""
        inputs = self._inputs(shape)
        expected = self.config.run(self.model, inputs)
        self.check(shape, self._onnx(inputs), expected, lambda: self._in_float64(inputs))

    def _in_float64(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The decoder's outputs in float64."""
        wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
        return self.config.run(self.wide, wide)

    @property
    def wide(self) -> Any:
        """A copy of the model in float64, made when first asked for.

        What a model computes in float32 whatever its type (norms, rotations, softmax) it computes so here too: the
        distance that is measured is that of its other roundings, and less than all of them.
        """
        if self._wide is None:
            self._wide = copy.deepcopy(self.model).double()
        return self._wide

    def greedy(self) -> tuple[int, int]:
        """How many greedy tokens both choose alike after the same prompt, and how many of them are ties.

        Each continues its own cache; the token that both continue with is PyTorch's.
        """
        prompt = min(PROMPT_TOKENS, self.limit)
        steps = min(GREEDY_TOKENS, self.limit - prompt + 1)
        inputs, ties = self._inputs(Shape(1, prompt, 0)), 0
        own = inputs
        for step in range(steps):
            expected, found = self.config.run(self.model, inputs), self._onnx(own)
            scores = expected["logits"][0, -1].float().numpy()
            theirs, ours = int(scores.argmax()), int(found["logits"][0, -1].argmax())
            if theirs != ours:
                ties += 1
                self._check_tie(step, scores, theirs, ours)
            inputs = self._next(expected, theirs)
            own = self._next({name: torch.from_numpy(array) for name, array in found.items()}, theirs)
        return steps, ties

    def _check_tie(self, step: int, scores: np.ndarray, theirs: int, ours: int) -> None:
        seen = self.worst["logits"].largest if "logits" in self.worst else 0.0
        gap, allowed = float(scores[theirs] - scores[ours]), 2 * max(tolerance(self._dtype, scores), seen)
        if not gap <= allowed:
            raise CheckpointError(
                f"greedy token {step} is {ours} in onnxruntime and {theirs} in PyTorch, whose scores of the two differ "
                f"by {gap:.3g} (a tie is within {allowed:.3g})"
            )

    def _inputs(self, shape: Shape) -> dict[str, Tensor]:
        """Random tokens; a past that PyTorch made of random tokens."""
        total = shape.past + shape.sequence
        ids = torch.from_numpy(self.random.integers(self.config.vocab_size, size=(shape.batch, total)))
        mask = torch.ones_like(ids)
        if shape.padded:
            padding = torch.from_numpy(self.random.integers(total, size=(shape.batch, 1)))
            mask = (torch.arange(total) >= padding).long()
        content = self.config.content(self.model, ids)
        return self._after(content, mask, shape.past)

    def _after(self, content: Mapping[str, Tensor], mask: Tensor, past: int) -> dict[str, Tensor]:
        """The inputs that continue the first ``past`` tokens with the others."""
        dtype = getattr(torch, self.decoder.manifest.cache_dtype)
        inputs: dict[str, Tensor] = self.config.cache.random(len(mask), 0, dtype, torch.Generator())
        if past:
            first = {name: tensor[:, :past] for name, tensor in content.items()}
            inputs = self._presents(self.config.run(self.model, {**first, **self._mask(mask[:, :past]), **inputs}))
        rest = {name: tensor[:, past:] for name, tensor in content.items()}
        return {**rest, **self._mask(mask), **inputs}

    def _next(self, outputs: Mapping[str, Tensor], token: int) -> dict[str, Tensor]:
        """The inputs of the next greedy step."""
        pasts = self._presents(outputs)
        total = next(iter(pasts.values())).shape[2] + 1
        content = self.config.content(self.model, torch.tensor([[token]]))
        return {**content, **self._mask(torch.ones(1, total, dtype=torch.long)), **pasts}

    def _mask(self, mask: Tensor) -> dict[str, Tensor]:
        return {"attention_mask": mask} if self.config.takes_mask else {}

    def _presents(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The presents of one pass as the pasts of the next."""
        return self.config.cache.named(self.config.cache.pairs(outputs, "present"), "past")

    def _onnx(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return outputs_of(self.decoder.session, {**inputs, LOGITS_TO_KEEP: torch.tensor([0])})

    @property
    def _dtype(self) -> str:
        return self.decoder.manifest.dtype

    def check(
        self,
        shape: Shape | str,
        found: Mapping[str, np.ndarray],
        expected: Mapping[str, Tensor],
        in_float64: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Compare the outputs of one pass, whose lengths ``shape`` says, with float64 beside where it is given."""
        exact: Mapping[str, Tensor] = {}
        for name, tensor in expected.items():
            theirs, ours, distances = tensor.numpy(), found[name], None
            if in_float64 and self._dtype == "float32" and farthest(ours, theirs) > tolerance("float32", theirs):
                exact = exact or in_float64()
                distances = farthest(ours, exact[name].numpy()), farthest(theirs, exact[name].numpy())
            own = None if distances is None else distances[1]
            delta = difference(name, shape, ours, theirs, self._dtype, own)
            if name not in self.worst or delta > self.worst[name].largest:
                self.worst[name] = Delta(name, delta, shape, distances)


def outputs_of(session: Any, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """One pass of onnxruntime, by name."""
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return dict(zip(names, found, strict=True))


def tolerance(dtype: str, expected: np.ndarray) -> float:
    """What numbers of an output may differ by."""
    least, share = TOLERANCES[dtype]
    return max(least, share * float(np.abs(expected).max(initial=0.0)))


def farthest(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two arrays; NaN where they hold one, or have different shapes."""
    if one.shape != other.shape:
        return float("nan")
    return float(_deltas(one, other).max(initial=0.0))


def _deltas(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    ours, theirs = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(ours == theirs, 0.0, np.abs(ours - theirs))  # two equal infinities differ by nothing


def difference(
    name: str, shape: object, found: np.ndarray, expected: np.ndarray, dtype: str, own_error: float | None = None
) -> float:
    """The largest difference of one output.

    Args:
        own_error: how far ``expected`` is from float64, where that was asked.

    Raises:
        CheckpointError: it is above the tolerance, or the outputs have different shapes.
    """
    if found.shape != expected.shape:
        raise CheckpointError(
            f"{name} is {list(found.shape)} in onnxruntime and {list(expected.shape)} in PyTorch ({shape})"
        )
    if found.size == 0:
        return 0.0
    deltas = _deltas(found, expected)
    place = np.unravel_index(np.nan_to_num(deltas, nan=np.inf).argmax(), deltas.shape)
    allowed, why = tolerance(dtype, expected), ""
    if own_error is not None and np.isfinite(own_error):
        why = f", where PyTorch itself is {own_error:.3g} from float64"
        allowed = max(allowed, TIMES_OWN_ERROR * own_error)
    if not deltas[place] <= allowed:
        where = ", ".join(str(index) for index in place)
        raise CheckpointError(
            f"{name} differs by {deltas[place]:.3g} at [{where}] ({shape}): {found[place]:.6g} in onnxruntime, "
            f"{expected[place]:.6g} in PyTorch; at most {allowed:.3g} is allowed in {dtype}{why}"
        )
    return float(deltas[place])
