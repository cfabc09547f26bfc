"""The DeepSeek-VL2 processor as transformers' callers know it; what it makes is the business of `processing`."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from modelwright.errors import CheckpointError, RequestError
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.prompts import require_files
from modelwright.processing.batching import ProcessedPrompt, pad_batch
from modelwright.processing.messages import Conversation
from modelwright.processing.rows import Pictures
from modelwright.processing.settings import refuse_unknown
from modelwright.processing.tiled_prompts import TiledPrompts, TiledPromptSettings
from modelwright.processing.tokenizer import tokenizer_folder

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


class DeepseekVLV2Processor(ProcessorMixin):
    """Text and pictures in, ``BatchFeature`` out, with the official names, values and ids.

    The arguments are those of a hub ``processor_config.json``, and three of ours:

    Args:
        tokenizer: becomes the processor's own: special tokens it lacks are added, it pads on the left, and it gets a
            chat template when it has none.
        candidate_resolutions: (width, height) pairs; the first is the size of one square tile.
        pad_token: used when the tokenizer has none.
        sft_format: deepseek, plain or alignment.
        mask_prompt: whether labels leave out everything but the answers.
        add_special_token: accepted, without effect, as in the official code.
        tile_tag, global_view_pos: as in the model's configuration; they fix the number of image tokens.
        max_cropped_images: pictures are cut into local tiles when the conversation holds at most this many.

    Raises:
        ConfigError: an unknown or impossible setting.
    """

    tokenizer: PreTrainedTokenizerBase
    candidate_resolutions: list[list[int]]
    patch_size: int
    downsample_ratio: int
    image_mean: list[float]
    image_std: list[float]
    normalize: bool
    image_token: str
    pad_token: str
    sft_format: str
    mask_prompt: bool
    ignore_id: int
    add_special_token: bool
    tile_tag: str
    global_view_pos: str
    max_cropped_images: int

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        candidate_resolutions: Sequence[Sequence[int]] = ((384, 384),),
        patch_size: int = 14,
        downsample_ratio: int = 2,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        normalize: bool = True,
        image_token: str = "<image>",
        pad_token: str = "<｜▁pad▁｜>",
        sft_format: str = "deepseek",
        mask_prompt: bool = True,
        ignore_id: int = -100,
        add_special_token: bool = False,
        tile_tag: str = "2D",
        global_view_pos: str = "head",
        max_cropped_images: int = 2,
        **kwargs: Any,
    ):
        refuse_unknown(kwargs, known=list(inspect.signature(DeepseekVLV2Processor).parameters))
        settings = TiledPromptSettings(
            candidate_resolutions=[list(resolution) for resolution in candidate_resolutions],
            patch_size=patch_size,
            downsample_ratio=downsample_ratio,
            image_mean=list(image_mean),
            image_std=list(image_std),
            normalize=normalize,
            image_token=image_token,
            pad_token=pad_token,
            sft_format=sft_format,
            mask_prompt=mask_prompt,
            ignore_id=ignore_id,
            add_special_token=add_special_token,
            tile_tag=tile_tag,
            global_view_pos=global_view_pos,
            max_cropped_images=max_cropped_images,
        )
        for name, value in asdict(settings).items():
            setattr(self, name, value)  # which is what transformers writes to a file
        self._prompts = TiledPrompts(tokenizer, settings)
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)
        self.image_token_id = self._prompts.image_token_id

    @property
    def image_size(self) -> int:
        """The side of a tile in pixels."""
        return self._prompts.settings.image_size

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "images", "images_seq_mask", "images_spatial_crop"]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Pictures = None,
        text: str | Sequence[str] | None = None,
        *,
        conversations: Conversation | Sequence[Conversation] | None = None,
        prompt: str | Sequence[str] | None = None,
        inference_mode: bool = True,
        system_prompt: str = "",
        force_batchify: bool = True,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> Any:
        """One conversation, or several padded on the left.

        Args:
            images: the pictures given beside the conversations (see `messages` for those inside them): a list of
                pictures, handed out to the placeholders in order, or one such list for each conversation.
            conversations: a list of messages, or a list of such lists.
            prompt, text: text that is formatted already, or a list of it, instead of conversations.
            inference_mode: leave out the last end of sentence, so that the model continues the last answer.
            system_prompt: comes first, as a system message would.
            force_batchify: with False, one conversation comes back as a `ProcessedPrompt`.
            return_tensors: ``pt`` or ``np``.

        Returns:
            BatchFeature with the fields and shapes of `pad_batch`.

        Raises:
            RequestError: bad messages, unreadable pictures, or counts of pictures and placeholders that differ.
        """
        kwargs.pop("padding", None)  # always on the left, to the longest
        if kwargs:
            raise RequestError(f"the processor does not know the arguments {', '.join(sorted(kwargs))}")
        given = prompt if prompt is not None else text
        how = {"inference_mode": inference_mode, "system_prompt": system_prompt}
        outputs = self._prompts.process(conversations, given, images, **how)
        if not force_batchify and len(outputs) == 1:
            return outputs[0]
        return self.batch(outputs, return_tensors=return_tensors)

    def process_one(
        self,
        conversation: Conversation,
        images: Pictures = None,
        *,
        inference_mode: bool = True,
        system_prompt: str = "",
    ) -> ProcessedPrompt:
        """One conversation, not batched."""
        how = {"inference_mode": inference_mode, "system_prompt": system_prompt}
        return self._prompts.process_one(conversation, images, **how)

    def batch(self, prompts: Sequence[ProcessedPrompt], *, return_tensors: str | None = "pt") -> BatchFeature:
        """Pad single outputs into a batch; see `pad_batch` for shapes."""
        arrays = pad_batch(
            prompts, pad_id=cast(int, self.tokenizer.pad_token_id), ignore_id=self._prompts.settings.ignore_id
        )
        return BatchFeature(arrays, tensor_type=return_tensors)

    def num_image_tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a picture whose local tiles form ``grid`` (columns, rows)."""
        return self._prompts.num_image_tokens(grid)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, conversation: Any, chat_template: str | None = None, *, tokenize: bool = False, **kwargs: Any
    ) -> Any:
        """The conversation as text, the same as the tokenizer's; with ``tokenize`` the processor's own output."""
        if tokenize:
            return self(conversations=conversation)
        return self.tokenizer.apply_chat_template(conversation, chat_template=chat_template, tokenize=False, **kwargs)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "DeepseekVLV2Processor":
        """Load from a folder or hub name with the files of an official checkpoint.

        ``tokenizer.json`` is taken as it is, whatever class ``tokenizer_config.json`` names: the Llama class named
        there by the official files would bring a pre-tokenizer of its own. The tokenizer may lie in a folder
        ``tokenizer`` beside ``processor_config.json``.
        """
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        folder = tokenizer_folder(Path(pretrained_model_name_or_path))
        source = folder if folder.is_dir() else pretrained_model_name_or_path
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **hub)
            settings, overrides = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
            raise CheckpointError(f"{source} holds no processor that can be read: {error}") from error
        return cast(DeepseekVLV2Processor, cls.from_args_and_dict([tokenizer], settings, **overrides))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the files of a hub checkpoint; the tokenizer names a class that older transformers know too."""
        written = super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs)
        config_file = Path(save_directory) / "tokenizer_config.json"
        config = json.loads(config_file.read_text("utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config_file.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", "utf-8")
        tokens = json.dumps(self.tokenizer.special_tokens_map, ensure_ascii=False, indent=2, default=str)
        (Path(save_directory) / "special_tokens_map.json").write_text(tokens + "\n", "utf-8")
        return written


def read_processor(folder: Path, config: DeepseekVLV2Config) -> DeepseekVLV2Processor:
    """The processor in a folder, told what official files say in ``config.json`` only: how tiles become rows.

    Raises:
        CheckpointError: the folder lacks a file.
    """
    require_files(folder)
    return DeepseekVLV2Processor.from_pretrained(
        folder, tile_tag=config.tile_tag, global_view_pos=config.global_view_pos
    )
