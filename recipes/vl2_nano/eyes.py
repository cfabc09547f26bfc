"""The tower and the projector learn to say what is to be seen: a stage of their own, and practice beside conversations.

The heads that say it are thrown away in the end; they are kept beside the weights for the next stage.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from modelwright.configs.run import RunConfig
from modelwright.hf.training_pass import PassCounts, PassLoss
from modelwright.processing.image_processor import TileImageProcessor
from modelwright.training.gradients import clipping, fill_missing, norms_of, scale
from modelwright.training.optimizers import Optimizers, Steered, kinds_of
from modelwright.training.report import RunFacts, RunReport
from modelwright.training.results import DONE, Ended, StepResult
from modelwright.training.schedules import rate_at
from recipes.vl2_nano.drawn import drawn
from recipes.vl2_nano.sight import PatchHeads, RowHeads, Sights, word_tokens

FILE = "eyes.safetensors"
PRACTICE = 0.3
"""What the eyes' losses weigh beside that of conversations."""
_SIGHT = "sight_"


class Eyes:
    """The heads that read a model's tower and projector, and their losses."""

    def __init__(self, model: DeepseekVLV2ForCausalLM, processor: DeepseekVLV2Processor):
        config, tokenizer = model.config, processor.tokenizer
        words = word_tokens(lambda text: tokenizer.encode(text, add_special_tokens=False))
        joined = config.projector_config.downsample_ratio**2
        self.patches = PatchHeads(config.vision_config.width)
        self.rows = RowHeads(config.projector_config.n_embed, joined, words)
        self.heads = nn.ModuleList([self.patches, self.rows])
        nn.Module.to(self.heads, model.device)

    def load(self, folder: Path) -> bool:
        """Take the heads that an earlier stage left in ``folder``; False where it left none."""
        file = folder / FILE
        if file.is_file():
            load_model(self.heads, file, strict=False)
        return file.is_file()

    def save(self, folder: Path) -> None:
        """Keep the heads for the next stage."""
        save_model(self.heads, str(folder / FILE))

    def losses(self, model: DeepseekVLV2ForCausalLM, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch's losses, and ``right``, the share of patches named right."""
        seen = dict(batch)
        features = model.vision(seen["tiles"])
        words = model.language.model.embed_tokens.weight.detach()
        return self.patches(features, seen) | self.rows(model.projector(features), words, seen)


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of what is to be made small."""
    return torch.stack([value for name, value in losses.items() if name != "right"]).sum()


def sights_for(processor: DeepseekVLV2Processor, batch: int, mix: Iterable[float]) -> Sights:
    """What draws pictures for the eyes of that processor's model."""
    resolutions = tuple((width, height) for width, height in processor.candidate_resolutions)
    cut = TileImageProcessor(resolutions, processor.image_size)
    scenes, cards, sheets = mix
    return Sights(cut, processor.patch_size, batch, (scenes, cards, sheets))


class PractisingVL2(DeepseekVLV2ForCausalLM):
    """A DeepSeek-VL2 whose eyes are kept in practice: their losses on pictures of their own are a part of ``balance``.

    ``eyes`` are heads that learn no more; without them it is the model alone.
    """

    eyes: Eyes | None = None

    def training_loss(self, **inputs: Any) -> PassLoss:
        """As the model's, with the arguments of :func:`for_practice` among ``inputs``."""
        sight, rest = _apart(inputs)
        passed = super().training_loss(**rest)
        if self.eyes is None or not sight:
            return passed
        practice = PRACTICE * total(self.eyes.losses(self, sight))
        return replace(passed, balance=practice if passed.balance is None else passed.balance + practice)

    def training_counts(self, **inputs: Any) -> PassCounts:
        """As the model's."""
        return super().training_counts(**_apart(inputs)[1])


def for_practice(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of :class:`Sights` under the names that :class:`PractisingVL2` takes."""
    return {f"{_SIGHT}{name}": value for name, value in batch.items()}


def _apart(inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    sight = {name.removeprefix(_SIGHT): value for name, value in inputs.items() if name.startswith(_SIGHT)}
    return sight, {name: value for name, value in inputs.items() if not name.startswith(_SIGHT)}


def train_eyes(
    model: DeepseekVLV2ForCausalLM, eyes: Eyes, sights: Sights, config: RunConfig, report: RunReport, workers: int
) -> None:
    """Step the tower, the projector and the heads ``config.steps`` times by the run's optimizer, rates and clipping."""
    steered = _steered(model, eyes)
    optimizers, steps = Optimizers(config.optimizer, steered), config.steps or 1
    low = getattr(torch, config.precision.compute or config.model.dtype)
    products = partial(torch.autocast, model.device.type, low, enabled=config.precision.autocast)
    report.begin(RunFacts(steps=steps, config=config.to_dict(), device=model.device.type))
    batches = drawn(sights, config.seed, workers)
    for step in range(1, steps + 1):
        batch = {name: each.to(model.device) for name, each in next(batches).items()}
        started = monotonic()
        with products():
            losses = eyes.losses(model, batch)
        loss = total(losses)
        loss.backward()
        fill_missing(steered)
        norm, norms = norms_of(steered)
        scale(steered, clipping(float(norm), config.clip))
        rates = optimizers.set_rate(rate_at(config.schedule, config.optimizer.lr, steps, step))
        optimizers.step()
        optimizers.clear()
        result = StepResult(
            step=step,
            loss=loss.item(),
            lm=loss.item(),
            balance=None,
            counted=batch["what"].numel(),
            tokens=batch["what"].numel(),
            norm=float(norm),
            norms={part: float(each) for part, each in norms.items()},
            rates=rates,
            seconds=monotonic() - started,
        )
        report.step(result, {name: value.item() for name, value in losses.items()})
    report.end(Ended(DONE, steps, f"{steps} steps were taken"))


def _steered(model: DeepseekVLV2ForCausalLM, eyes: Eyes) -> list[Steered]:
    decaying, hidden = kinds_of(model)
    steered = [
        Steered(name, parameter, name.partition(".")[0], None, name in decaying, name in hidden)
        for name, parameter in model.named_parameters()
        if name.startswith(("vision.", "projector."))
    ]
    heads = eyes.heads.named_parameters()
    return steered + [Steered(f"eyes.{name}", each, "eyes", None, each.dim() > 1, False) for name, each in heads]
