"""What a model knows of hearts and pink things, and of the old world, on pictures that are in no row."""

import re
from dataclasses import dataclass

import numpy as np

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from recipes.vl2_nano import evaluate
from recipes.vl2_nano.questions import Probe, probe
from recipes.vl2_teach.rows import COLOUR, KIND, WIDER

SEED = 20_260_202  # far from every seed of training


@dataclass(frozen=True)
class Task:
    """A task of ``questions.probe``, of which those probes count whose question and answer match."""

    name: str
    question: str = ""
    answer: str = ""

    def fits(self, item: Probe) -> bool:
        """Whether a probe is one of this task's."""
        matches = ((self.question, item.question), (self.answer, item.expected))
        return all(re.search(pattern, text, re.IGNORECASE) for pattern, text in matches)


NEW_TASKS = {
    "new shape, named": Task("shape", answer=KIND),
    "new shape, boxed": Task("grounding", question=KIND),
    "new colour, named": Task("colour", answer=COLOUR),
    "new colour, boxed": Task("grounding", question=COLOUR),
    "either, counted": Task("count", question=f"{KIND}|{COLOUR}", answer=r"^[1-9]"),
    "either, described": Task("describe", answer=f"{KIND}|{COLOUR}"),
    "either, absent": Task("absent", question=f"{KIND}|{COLOUR}"),
}


def new_probes(number: int, task: Task, count: int) -> list[Probe]:
    """``count`` held-out probes of a task, in the wider world."""
    rng = np.random.default_rng([SEED, number])
    found: list[Probe] = []
    while len(found) < count:
        item = probe(rng, task.name, WIDER)
        if task.fits(item):
            found.append(item)
    return found


def measure_new(
    model: DeepseekVLV2ForCausalLM, processor: DeepseekVLV2Processor, count: int, batch: int, show: int = 0
) -> dict[str, float]:
    """The share of right answers to each of the new tasks."""
    return {
        name: evaluate.share(model, processor, name, new_probes(number, task, count), batch, show)
        for number, (name, task) in enumerate(NEW_TASKS.items())
    }


def measure_all(
    model: DeepseekVLV2ForCausalLM, processor: DeepseekVLV2Processor, count: int, batch: int = 20
) -> dict[str, float]:
    """The share of right answers to the new tasks and to those of vl2-nano's own table."""
    return measure_new(model, processor, count, batch) | evaluate.measure(model, processor, count, batch)
