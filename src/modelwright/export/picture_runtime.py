"""DeepSeek-VL2 from an exported folder with onnxruntime and numpy alone; pictures come as the processor's tiles."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from modelwright.errors import RequestError
from modelwright.export.runtime import OnnxDecoder, OnToken, continue_rows
from modelwright.export.session import open_session
from modelwright.export.tile_rows import Crop, TileLayout


class OnnxPictureDecoder:
    """The three graphs of an exported DeepSeek-VL2: pictures and text in, text out.

    Arguments and errors are those of :class:`OnnxDecoder`.
    """

    def __init__(self, folder: str | Path, threads: int | None = None):
        self.text = OnnxDecoder(folder, threads)
        folder, graphs = self.text.folder, self.text.manifest.graphs
        if "vision" not in graphs or "embed" not in graphs:
            raise RequestError(
                f"{folder} holds a {self.text.manifest.family}, which reads no pictures: use OnnxDecoder"
            )
        self.vision = open_session(folder / graphs["vision"], threads)
        self.embed = open_session(folder / graphs["embed"], threads)

    def generate(
        self,
        input_ids: Any,
        images: Any = None,
        images_seq_mask: Any = None,
        images_spatial_crop: Any = None,
        max_new_tokens: int = 512,
        *,
        attention_mask: Any = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        eos_token_id: int | Iterable[int] | None = None,
        chunk: int | None = None,
        on_token: OnToken | None = None,
    ) -> np.ndarray:
        """Continue every row; pictures are as in :meth:`prepare_inputs_embeds`, the rest as in ``OnnxDecoder``."""
        ids, mask = self.text.checked_prompt(input_ids, attention_mask, max_new_tokens)
        how = self.text.continuation(max_new_tokens, temperature, top_k, top_p, seed, eos_token_id, chunk, on_token)
        prompt = self.prepare_inputs_embeds(ids, images, images_seq_mask, images_spatial_crop)
        return continue_rows(self.text.decoder, ids, mask, how, self._rows_of_text, {"inputs_embeds": prompt})

    def prepare_inputs_embeds(
        self, input_ids: Any, images: Any = None, images_seq_mask: Any = None, images_spatial_crop: Any = None
    ) -> np.ndarray:
        """The decoder's input rows of a batch, every picture's in place: ``[batch, tokens, dim]``.

        Args:
            input_ids: ``[batch, tokens]``.
            images: tiles ``[batch, tiles, 3, side, side]``, each row's pictures one after the other, global view first.
            images_seq_mask: ``[batch, tokens]``, true where a picture's row goes.
            images_spatial_crop: ``[batch, pictures, 2]``, (columns, rows) of local tiles; zeros are padding.

        Raises:
            RequestError: the three do not fit each other: one is missing, or places, tiles and rows differ in number.
        """
        ids = np.asarray(input_ids)
        embeds = self._rows_of_text(ids)["inputs_embeds"]
        crops = self._crops(ids, images, images_seq_mask, images_spatial_crop)
        mask = np.zeros(ids.shape, bool) if images_seq_mask is None else np.asarray(images_seq_mask).astype(bool)
        rows = self._picture_rows(np.asarray(images), crops) if any(crops) else [()] * len(ids)
        for i, (places, found) in enumerate(zip(mask.sum(axis=1), rows, strict=True)):
            if places != len(found):
                raise RequestError(
                    f"row {i} has {places} image places in images_seq_mask and {len(found)} image rows from its tiles"
                )
        if any(crops):
            embeds[mask] = np.concatenate(rows)
        return embeds

    def _rows_of_text(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        [embeds] = self.embed.run(["inputs_embeds"], {"input_ids": ids})
        return {"inputs_embeds": embeds}

    def _crops(self, ids: np.ndarray, images: Any, mask: Any, crops: Any) -> list[list[Crop]]:
        """Each row's crops, padding left out; raises where the shapes do not fit each other."""
        batch, tokens = ids.shape
        side = self.text.config["vision_config"]["image_size"]
        for name, part, shape in (
            ("images", images, (batch, None, 3, side, side)),
            ("images_seq_mask", mask, (batch, tokens)),
            ("images_spatial_crop", crops, (batch, None, 2)),
        ):
            if part is not None and not _has_shape(np.shape(part), shape):
                wanted = ", ".join("any" if length is None else str(length) for length in shape)
                raise RequestError(f"{name} has shape {list(np.shape(part))} and must have [{wanted}]")
        if images is None:
            return [[] for _ in range(batch)]
        if crops is None or mask is None:
            missing = "images_spatial_crop" if crops is None else "images_seq_mask"
            raise RequestError(f"images come with images_seq_mask and images_spatial_crop; {missing} is missing")
        return [[(w, h) for w, h in row if w and h] for row in np.asarray(crops).tolist()]

    def _picture_rows(self, images: np.ndarray, crops: list[list[Crop]]) -> list[np.ndarray]:
        """All picture rows of each row of the batch, ``[rows, dim]``."""
        counts = [sum(1 + columns * lines for columns, lines in row) for row in crops]
        for i, count in enumerate(counts):
            if count > images.shape[1]:
                raise RequestError(
                    f"row {i} needs {count} tiles by images_spatial_crop and images holds {images.shape[1]}"
                )
        features, marks = self._see(np.concatenate([row[:n] for row, n in zip(images, counts, strict=True)]))
        layout = TileLayout(self.text.config["tile_tag"], self.text.config["global_view_pos"], marks)
        per_row = np.split(features, np.cumsum(counts)[:-1])
        return [_arranged(layout, own, row) for own, row in zip(per_row, crops, strict=True)]

    def _see(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features ``[tiles, tokens, dim]`` of all tiles, as many at a time as the config allows, and the marks."""
        most = self.text.config["vision_batch_size"]
        tiles = tiles.astype(self.text.manifest.dtype)
        parts = [
            self.vision.run(["features", "marks"], {"images": tiles[start : start + most]})
            for start in range(0, len(tiles), most)
        ]
        return np.concatenate([features for features, _ in parts]), parts[0][1]


def _arranged(layout: TileLayout, features: np.ndarray, crops: list[Crop]) -> np.ndarray:
    """The rows of one row's pictures, one after the other."""
    rows, start = [features[:0].reshape(0, features.shape[-1])], 0
    for columns, lines in crops:
        stop = start + 1 + columns * lines
        rows.append(layout.rows(features[start:stop], (columns, lines)))
        start = stop
    return np.concatenate(rows)


def _has_shape(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether the lengths are those wanted, None standing for any."""
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))
