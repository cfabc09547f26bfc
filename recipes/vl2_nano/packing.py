"""Examples to training batches: one picture prefix shared by many conversations that cannot see each other.

A row is ``[prefix][conversation][conversation]...``. Every conversation's positions continue from the prefix, and its
tokens attend to the prefix and to themselves, so it is computed as if it stood alone, at a fraction of the cost.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelwright import DeepseekVLV2Processor
from modelwright.processing.image_processor import TileImageProcessor
from recipes.vl2_nano.facts import Dialogue
from recipes.vl2_nano.questions import Example, make_example

PREFIX = 0  # the group number of the shared prefix; conversations count from 1, padding is -1


@dataclass(frozen=True)
class Row:
    """One packed example: ids, labels, positions and groups of all tokens, tiles ``[n, 3, S, S]``, a crop a picture."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    groups: list[int]
    tiles: np.ndarray
    crops: list[tuple[int, int]]


class Packer:
    """Turns examples into rows with the processor's own tokens and tiles."""

    def __init__(self, processor: DeepseekVLV2Processor, budget: int = 320):
        self.processor = processor
        self.budget = budget
        self.tokenizer = processor.tokenizer
        resolutions = tuple((width, height) for width, height in processor.candidate_resolutions)
        self.cut = TileImageProcessor(resolutions, processor.image_size)

    def row(self, example: Example) -> Row:
        """Prefix and as many conversations of one example as fit into ``budget`` tokens, one at least."""
        tiles = [self.cut(picture) for picture in example.pictures]
        ids = [self.tokenizer.bos_token_id, *self._tokens("<|User|>: ")]
        for i, tile in enumerate(tiles):
            ids += self._tokens("\n") * (i > 0)
            ids += [self.processor.image_token_id] * self.processor.num_image_tokens(tile.grid)
        row = Row(
            ids,
            [self.processor.ignore_id] * len(ids),
            list(range(len(ids))),
            [PREFIX] * len(ids),
            np.concatenate([tile.pixels for tile in tiles]),
            [tile.grid for tile in tiles],
        )
        start = len(ids)
        for group, dialogue in enumerate(example.dialogues, start=1):
            tokens, labels = self.conversation(dialogue)
            if len(row.ids) > start and len(row.ids) + len(tokens) > self.budget:
                continue
            row.ids.extend(tokens)
            row.labels.extend(labels)
            row.positions.extend(range(start, start + len(tokens)))
            row.groups.extend([group] * len(tokens))
        return row

    def conversation(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        """Tokens after the picture placeholders, and labels that keep the answers and their ends."""
        ids: list[int] = []
        labels: list[int] = []
        for i, (question, answer) in enumerate(dialogue):
            asked = self._tokens(f"{'<|User|>: ' if i else chr(10)}{question}\n\n<|Assistant|>:")
            answered = [*self._tokens(answer), self.tokenizer.eos_token_id]
            ids += asked + answered
            labels += [self.processor.ignore_id] * len(asked) + answered
        return ids, labels

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


class Conversations:
    """Draws batches of rows.

    Args:
        batch: rows, so pictures or pairs of them; questions: conversations of a row, at most.
        mix: the shares of scenes, cards and pairs of pictures.
    """

    def __init__(
        self,
        processor: DeepseekVLV2Processor,
        batch: int,
        questions: int,
        mix: tuple[float, float, float] = (0.55, 0.33, 0.12),
    ):
        self.packer = Packer(processor)
        self.batch, self.questions, self.mix = batch, questions, mix

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """The model's arguments, see :func:`collate`."""
        examples = [make_example(rng, self.questions, *self.mix) for _ in range(self.batch)]
        return collate([self.packer.row(example) for example in examples], self.packer.processor)


def collate(rows: list[Row], processor: DeepseekVLV2Processor) -> dict[str, Tensor]:
    """The model's arguments for a batch of rows, padded on the right.

    ``attention_mask`` is ``[batch, 1, tokens, tokens]``, True where a token may look.
    """
    length = max(len(row.ids) for row in rows)
    pad = processor.tokenizer.pad_token_id
    assert isinstance(pad, int)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([getattr(row, name) + [value] * (length - len(row.ids)) for row in rows])

    groups = padded("groups", -1)
    same = groups[:, :, None] == groups[:, None, :]
    mask = (same | (groups == PREFIX)[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    ids = padded("ids", pad)
    images = torch.zeros(len(rows), max(len(row.tiles) for row in rows), *rows[0].tiles.shape[1:])
    crops = torch.zeros(len(rows), max(len(row.crops) for row in rows), 2, dtype=torch.long)
    for i, row in enumerate(rows):
        images[i, : len(row.tiles)] = torch.from_numpy(row.tiles)
        crops[i, : len(row.crops)] = torch.tensor(row.crops)
    return {
        "input_ids": ids,
        "attention_mask": mask[:, None],
        "position_ids": padded("positions", 0),
        "labels": padded("labels", processor.ignore_id),
        "images": images,
        "images_seq_mask": ids == processor.image_token_id,
        "images_spatial_crop": crops,
    }
