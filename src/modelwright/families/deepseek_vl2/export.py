"""How a DeepSeek-VL2 is exported: three graphs, of which two make embeddings of pictures and of tokens."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from modelwright.export.cache_tensors import BATCH, Axes
from modelwright.export.decoder import (
    EXAMPLE,
    DecoderGraph,
    bounded_positions,
    decoder_graph,
    example_inputs,
    traceable,
)
from modelwright.export.graphs import SEQUENCE, Graph, OnnxConfig, Pass
from modelwright.export.pictures import EmbedGraph, VisionGraph, dummy_conversations
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config

TILES = "tiles"


class DeepseekVLV2OnnxConfig(OnnxConfig):
    """DeepSeek-VL2 as three graphs.

    ``vision`` takes tiles to the rows of the language model that stand for them, and says which learned rows go between
    them; ``embed`` takes token ids to their rows; ``decoder`` takes rows to the scores of the next token. What brings
    the rows of pictures to their places is :class:`OnnxPictureDecoder`.
    """

    config: DeepseekVLV2Config

    @property
    def inputs(self) -> Mapping[str, Axes]:
        return {"inputs_embeds": {0: BATCH, 1: SEQUENCE}}

    @property
    def max_positions(self) -> int | None:
        return bounded_positions(self.config.language_config.rope, self.config.language_config.max_position_embeddings)

    def content(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"inputs_embeds": model.get_input_embeddings()(ids)}

    def generate_dummy_inputs(
        self,
        preprocessor: Any,
        batch_size: int = 1,
        seq_length: int = -1,
        is_pair: bool = False,
        framework: str | None = None,
        num_channels: int = 3,
        image_width: int = 32,
        image_height: int = 32,
    ) -> Mapping[str, Any]:
        """What the processor makes of a question about a picture of random pixels; see :func:`dummy_conversations`."""
        size = (image_width, image_height)
        return dummy_conversations(preprocessor, batch_size, seq_length, is_pair, framework, num_channels, size)

    def other_passes(self, model: Any, generator: torch.Generator) -> Iterator[Pass]:
        """One, two and three tiles through the tower; token ids of two to four rows through the embedding."""
        embed, side = EmbedGraph(model), self.config.vision_config.image_size
        with torch.no_grad():
            for count in (1, 2, 3):
                images = torch.randn(count, 3, side, side, generator=generator).to(model.dtype)
                yield Pass("vision", f"tiles {count}", {"images": images}, VisionGraph(model)({"images": images}))
                ids = torch.randint(self.vocab_size, (count + 1, 2 * count - 1), generator=generator)
                shape = f"batch {ids.shape[0]}, sequence {ids.shape[1]}"
                yield Pass("embed", shape, {"input_ids": ids}, embed({"input_ids": ids}))

    def prepared(self, model: Any) -> AbstractContextManager[None]:
        return traceable(model.language)

    def graphs(self, model: Any, dtype: torch.dtype) -> Iterator[Graph]:
        batch, tokens, _ = EXAMPLE.values()
        ids, side = torch.zeros(batch, tokens, dtype=torch.long), self.config.vision_config.image_size
        content = self.content(model, ids)
        module = DecoderGraph(model.language, self.cache, skips_padding=True)
        yield decoder_graph(self, module, example_inputs(self, dtype) | content)
        rows: Axes = {0: BATCH, 1: SEQUENCE}
        yield Graph("embed", EmbedGraph(model), {"input_ids": rows}, {"inputs_embeds": rows}, {"input_ids": ids})
        tiles = torch.zeros(2, 3, side, side, dtype=content["inputs_embeds"].dtype)
        outputs: dict[str, Axes] = {"features": {0: TILES}, "marks": {}}
        yield Graph("vision", VisionGraph(model), {"images": {0: TILES}}, outputs, {"images": tiles})
