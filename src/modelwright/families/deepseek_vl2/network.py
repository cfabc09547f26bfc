"""DeepSeek-VL2 (arXiv:2412.10302): a SigLIP tower and a projector in front of the DeepSeek-V2 decoder.

Pictures come as tiles (``processing`` makes them); this file turns them into rows of the decoder's input and runs it.
Leaves out the class that transformers knows (``model.py``).
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modelwright.errors import RequestError
from modelwright.families.deepseek_v2.network import DeepseekV2Causal, DeepseekV2Network
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.initialise import initialise_tower
from modelwright.families.deepseek_vl2.projector import MlpProjector
from modelwright.families.deepseek_vl2.siglip import VisionTower
from modelwright.families.deepseek_vl2.tiles import TileRows, picture_rows
from modelwright.hf.arguments import check_tokens, one_of
from modelwright.hf.cache_names import either_cache_name
from modelwright.hf.caches import Cache
from modelwright.hf.outputs import CausalOutput
from modelwright.hf.training_pass import PassCounts, PassLoss


class DeepseekVLV2Network(DeepseekV2Network):
    """Pictures and text in, text out. Arguments and parameters have their official names, misspellings included."""

    config_class = DeepseekVLV2Config
    base_model_prefix = "language"
    draws_tokens = True
    causal: ClassVar[type[DeepseekV2Causal]] = DeepseekV2Causal
    _tied_weights_keys: ClassVar[dict[str, str]] = {"language.lm_head.weight": "language.model.embed_tokens.weight"}

    def __init__(self, config: DeepseekVLV2Config):
        super().__init__(config)
        width = config.projector_config.n_embed
        self.vision = VisionTower(config.vision_config)
        self.projector = MlpProjector(config.projector_config)
        self.language = self.causal(config.language_config)
        if config.tile_tag == "2D":
            self.image_newline = nn.Parameter(torch.empty(width))
            self.view_seperator = nn.Parameter(torch.empty(width))
        else:
            size = config.tile_size
            most = max((w // size) * (h // size) for w, h in config.candidate_resolutions)
            self.tile_indicators = nn.Parameter(torch.empty(1 + most, width))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embedding."""
        return self.language.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embedding."""
        self.language.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's head."""
        return self.language.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder's head."""
        self.language.lm_head = new_embeddings

    @torch.no_grad()
    def keep_stage(self, layers: range, *, embedding: bool, head: bool) -> None:
        """As :meth:`CausalNetwork.keep_stage`; what makes rows of pictures goes with the embedding."""
        self.language.keep_stage(layers, embedding=embedding, head=head)
        if not embedding:
            for name in ("vision", "projector", *self._marks()):
                setattr(self, name, None)

    def may_leave_out(self) -> tuple[str, ...]:
        """The pooling head of the official tower is left aside unless the config asks for it."""
        head = (r"^vision\.(attn_pool|head|fc_norm)\.",) if self.config.vision_config.ignore_head else ()
        return (*self.unused_tensors, *head)

    def prepare_inputs_embeds(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        images_seq_mask: Tensor | None = None,
        images_spatial_crop: Tensor | None = None,
        **ignored,
    ) -> Tensor:
        """Embeddings of a batch with every picture's rows in place.

        Args:
            input_ids: ``[batch, tokens]``.
            images: tiles ``[batch, tiles, 3, size, size]``, each row's pictures one after the other, global view first.
            images_seq_mask: ``[batch, tokens]``, true (or 1) where a picture's row goes.
            images_spatial_crop: ``[batch, pictures, 2]``, ``(width_tiles, height_tiles)``; zeros are padding.
            ignored: the rest of a processor's output, so that the whole of it can be passed on.

        Returns:
            ``[batch, tokens, hidden]``; gradients reach the embedding, the projector and the tower.

        Raises:
            RequestError: a token is not in the vocabulary, or the three do not fit each other: one is missing, or
                places, tiles and rows differ in number.
        """
        check_tokens(one_of(input_ids, None), self.config)
        embeds = self.get_input_embeddings()(input_ids)
        if images is None and images_seq_mask is None:
            return embeds
        crops = self._crops(input_ids, images, images_seq_mask, images_spatial_crop)
        counts = [0] * len(input_ids)
        if images_seq_mask is not None:
            counts = images_seq_mask.bool().sum(dim=1).tolist()
        if images is None or not any(crops):
            self._check_rows(counts, [0] * len(counts))
            return embeds
        features = self._tile_features(images, crops)
        rows = [self._rows_of(features, row_crops) for features, row_crops in zip(features, crops, strict=True)]
        self._check_rows(counts, [len(row) for row in rows])
        assert images_seq_mask is not None  # or the counts would differ
        mask = images_seq_mask.to(embeds.device).bool()
        return embeds.masked_scatter(mask[..., None], torch.cat(rows).to(embeds))

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        images: Tensor | None = None,
        images_seq_mask: Tensor | None = None,
        images_spatial_crop: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalOutput | tuple:
        """One pass: as :meth:`CausalNetwork.forward`, with pictures as in :meth:`prepare_inputs_embeds`.

        What is returned is by default as this config says, or that of its decoder.
        """
        inputs_embeds = self._embeds(input_ids, inputs_embeds, images, images_seq_mask, images_spatial_crop)
        return self.language(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **self._returns(kwargs),
        )

    def training_loss(
        self,
        *,
        labels: Tensor | None,
        chunk: int | None = None,
        loads: Tensor | None = None,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        images: Tensor | None = None,
        images_seq_mask: Tensor | None = None,
        images_spatial_crop: Tensor | None = None,
        **inputs: Any,
    ) -> PassLoss:
        """As :meth:`CausalNetwork.training_loss`, with pictures as in :meth:`forward`."""
        embeds = self._embeds(input_ids, inputs_embeds, images, images_seq_mask, images_spatial_crop)
        return self.language.training_loss(labels=labels, chunk=chunk, loads=loads, inputs_embeds=embeds, **inputs)

    def training_loads(
        self,
        *,
        labels: Tensor | None,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        images: Tensor | None = None,
        images_seq_mask: Tensor | None = None,
        images_spatial_crop: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor | None:
        """As :meth:`CausalNetwork.training_loads`."""
        with torch.no_grad():
            embeds = self._embeds(input_ids, inputs_embeds, images, images_seq_mask, images_spatial_crop)
        return self.language.training_loads(labels=labels, inputs_embeds=embeds, **inputs)

    def training_counts(
        self,
        *,
        labels: Tensor | None,
        images: Tensor | None = None,
        images_seq_mask: Tensor | None = None,
        images_spatial_crop: Tensor | None = None,
        **inputs: Any,
    ) -> PassCounts:
        """As :meth:`CausalNetwork.training_counts`; pictures add nothing to count."""
        return self.language.training_counts(labels=labels, **inputs)

    @torch.no_grad()
    def encode_pictures(self, tiles: Tensor, crops: list[tuple[int, int]]) -> list[Tensor]:
        """Pictures without a prompt: their rows of the decoder's input, ``[rows, hidden]`` each.

        Args:
            tiles: ``[tiles, 3, size, size]``, those of all pictures one after the other, global views first.
            crops: each picture's ``(width_tiles, height_tiles)``.
        """
        (features,) = self._tile_features(tiles[None], [crops])
        return list(self._rows_of(features, crops).split([self.config.picture_tokens(crop) for crop in crops]))

    def _embeds(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, *pictures: Tensor | None) -> Tensor:
        """The embeddings given, or those of ``input_ids`` with their pictures."""
        tokens = one_of(input_ids, inputs_embeds)
        if input_ids is not None:
            return self.prepare_inputs_embeds(input_ids, *pictures)
        if any(part is not None for part in pictures):
            raise RequestError("pictures come with input_ids; inputs_embeds hold theirs already")
        return tokens

    def _returns(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a pass; what they do not say of its output this config may say."""
        said = {name: True for name in ("output_hidden_states", "output_attentions") if getattr(self.config, name)}
        said |= {} if self.config.return_dict else {"return_dict": False}
        return asked | {name: value for name, value in said.items() if asked.get(name) is None}

    def _crops(
        self, input_ids: Tensor, images: Tensor | None, mask: Tensor | None, crops: Tensor | None
    ) -> list[list[tuple[int, int]]]:
        """Each row's ``(width, height)`` pairs, padding left out; raises where the shapes do not fit each other."""
        batch, tokens = input_ids.shape
        size = self.config.vision_config.image_size
        for name, part, shape in (
            ("images", images, (batch, None, 3, size, size)),
            ("images_seq_mask", mask, (batch, tokens)),
            ("images_spatial_crop", crops, (batch, None, 2)),
        ):
            if part is not None and not isinstance(part, Tensor):
                raise RequestError(
                    f'{name} must be a tensor, as return_tensors="pt" makes it, got {type(part).__name__}'
                )
            if part is not None and not _has_shape(part, shape):
                wanted = ", ".join("any" if length is None else str(length) for length in shape)
                raise RequestError(f"{name} has shape {list(part.shape)} and must have [{wanted}]")
        if images is None:
            return []
        if crops is None or mask is None:
            missing = "images_spatial_crop" if crops is None else "images_seq_mask"
            raise RequestError(f"images come with images_seq_mask and images_spatial_crop; {missing} is missing")
        if crops.is_floating_point():
            raise RequestError(f"images_spatial_crop must hold whole numbers, got {crops.dtype}")
        return [[(w, h) for w, h in row if w and h] for row in crops.tolist()]

    def _check_rows(self, places: list[int], rows: list[int]) -> None:
        for i, (wanted, found) in enumerate(zip(places, rows, strict=True)):
            if wanted != found:
                raise RequestError(
                    f"row {i} has {wanted} image places in images_seq_mask and {found} image rows from its tiles"
                )

    def _tile_features(self, images: Tensor, crops: list[list[tuple[int, int]]]) -> list[Tensor]:
        """Projected features of each row's tiles, ``[tiles, tokens, hidden]``: all tiles of the batch, in chunks."""
        counts = [sum(1 + width * height for width, height in row) for row in crops]
        for i, count in enumerate(counts):
            if count > images.shape[1]:
                raise RequestError(
                    f"row {i} needs {count} tiles by images_spatial_crop and images holds {images.shape[1]}"
                )
        weight = self.vision.patch_embed.proj.weight
        tiles = torch.cat([row[:count] for row, count in zip(images, counts, strict=True)])
        place = (
            tiles.device if weight.is_meta else weight.device
        )  # a tower that lies on disk is brought when it is called
        chunks = tiles.to(place, weight.dtype).split(self.config.vision_batch_size)
        features = torch.cat([self.projector(self.vision(chunk)) for chunk in chunks])
        return list(features.split(counts))

    def _rows_of(self, features: Tensor, crops: list[tuple[int, int]]) -> Tensor:
        """All picture rows of one row of the batch, ``[rows, hidden]``."""
        layout = self._layout()
        parts, start = [], 0
        for width, height in crops:
            stop = start + 1 + width * height
            parts.append(picture_rows(features[start:stop], (width, height), layout))
            start = stop
        return torch.cat(parts) if parts else features.new_empty(0, features.shape[-1])

    def _layout(self) -> TileRows:
        global_first = self.config.global_view_pos == "head"
        if self.config.tile_tag == "1D":
            return TileRows("1D", global_first, indicators=self.tile_indicators)
        return TileRows("2D", global_first, newline=self.image_newline, separator=self.view_seperator)

    def initialise(self, module: nn.Module) -> None:
        if module is self:
            for name in self._marks():
                mark = getattr(self, name)
                if mark is not None:  # a stage of a pipeline may hold none
                    nn.init.normal_(mark, std=1 / math.sqrt(mark.shape[-1]))
        elif isinstance(module, VisionTower):
            initialise_tower(module)

    def _marks(self) -> tuple[str, ...]:
        """The learned rows that stand between tiles, by the names of their parameters."""
        return ("tile_indicators",) if self.config.tile_tag == "1D" else ("image_newline", "view_seperator")


def _has_shape(tensor: Tensor, shape: tuple[int | None, ...]) -> bool:
    """Whether the lengths are those of ``shape``, None standing for any."""
    return tensor.dim() == len(shape) and all(b is None or a == b for a, b in zip(tensor.shape, shape, strict=True))
