"""The DeepSeek-VL2 processor as transformers' callers know it; what it makes is the business of `processing`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from modelwright.errors import CheckpointError, RequestError
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.prompts import require_files
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.call_options import CallOptions
from modelwright.processing.file_keys import meant, unread, without_effect
from modelwright.processing.messages import Conversation
from modelwright.processing.official import OfficialMethods
from modelwright.processing.prompt_batch import PromptBatch, make_batch
from modelwright.processing.rows import split_rows
from modelwright.processing.settings import refuse_unknown
from modelwright.processing.templates import Rendering, pick_template, variables_of
from modelwright.processing.tiled_prompts import TiledPrompts, TiledPromptSettings
from modelwright.processing.tokenizer import read_fast_tokenizer

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


SETTINGS = tuple(field.name for field in fields(TiledPromptSettings))
"""What a ``processor_config.json`` may say."""


class DeepseekVLV2Processor(OfficialMethods, ProcessorMixin):
    """Text and pictures in, ``BatchFeature`` out, with the official names, methods, values and ids.

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
        refuse_unknown(kwargs, known=SETTINGS)
        self._unread: dict[str, Any] = {}
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
        super().__init__(tokenizer, chat_template=kwargs.get("chat_template") or tokenizer.chat_template)
        self.image_token_id = self._prompts.image_token_id

    @property
    def prompts(self) -> TiledPrompts:
        """What makes its arrays, without what transformers' callers know."""
        return self._prompts

    @property
    def image_size(self) -> int:
        """The side of a tile in pixels."""
        return self._prompts.settings.image_size

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "images", "images_seq_mask", "images_spatial_crop"]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        conversations: Conversation | Sequence[Conversation] | None = None,
        prompt: str | Sequence[str] | None = None,
        apply_sft_format: bool = False,
        inference_mode: bool = True,
        system_prompt: str = "",
        force_batchify: bool = True,
        **kwargs: Any,
    ) -> Any:
        """One conversation or text, or several as a padded batch.

        Args:
            images: the pictures given beside the conversations (see `messages` for those inside them): a picture or a
                list of them, handed out to the placeholders in order, or one such list for each conversation.
            conversations: a list of messages, or a list of such lists.
            prompt, text: text that is formatted already, or a list of it, instead of conversations. Every token of it
                is learnt but those of pictures.
            apply_sft_format: a prompt is a user's words, to be formatted.
            inference_mode: leave out the last end of sentence, so that the model continues the answer, or the text.
            system_prompt: comes first, as a system message would.
            force_batchify: with False, one conversation comes back as a `ProcessedPrompt`.
            kwargs: transformers' arguments, as `CallOptions` names them.

        Returns:
            A `PromptBatch` with the fields and shapes of `pad_batch`.

        Raises:
            RequestError: bad messages, unreadable pictures, counts of pictures and placeholders that differ, or an
                argument that is not served.
        """
        how = CallOptions.of(kwargs)
        given = prompt if prompt is not None else text
        if (conversations is None) == (given is None):
            raise RequestError("give either conversations or a prompt (text)")
        if conversations is not None:
            outputs = self._prompts.process(
                conversations, images, inference_mode=inference_mode, system_prompt=system_prompt
            )
        else:
            texts = self._formatted(given, apply_sft_format, system_prompt)
            outputs = self._prompts.process_texts(
                texts, images, inference_mode=inference_mode, marks=how.add_special_tokens
            )
        if not force_batchify and len(outputs) == 1:
            return outputs[0]
        return self._batch(outputs, how)

    def process_one(
        self,
        conversation: Conversation | str | None = None,
        images: Any = None,
        *,
        prompt: str | None = None,
        conversations: Conversation | None = None,
        apply_sft_format: bool = False,
        inference_mode: bool = True,
        system_prompt: str = "",
    ) -> ProcessedPrompt:
        """One conversation or text, not batched; arguments are those of a call, official names among them."""
        if isinstance(conversation, str):
            prompt, conversation = conversation, None
        given = conversations if conversation is None else conversation
        return self(
            images=None if images is None else [images] if isinstance(images, list | tuple) else images,
            prompt=None if prompt is None else [prompt],
            conversations=None if given is None else [given],
            apply_sft_format=apply_sft_format,
            inference_mode=inference_mode,
            system_prompt=system_prompt,
            force_batchify=False,
        )

    def process_messages(self, messages: Conversation, how: Rendering) -> ProcessedPrompt:
        """As `TiledPrompts.process_messages`."""
        return self._prompts.process_messages(messages, how)

    def batch(self, prompts: Sequence[ProcessedPrompt], *, return_tensors: str | None = "pt") -> PromptBatch:
        """Pad single outputs into a batch; see `pad_batch` for shapes."""
        return self._batch(prompts, CallOptions(return_tensors=return_tensors))

    def num_image_tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a picture whose local tiles form ``grid`` (columns, rows)."""
        return self._prompts.num_image_tokens(grid)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "auto",
        return_dict: bool = True,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """What a chat template prints of a conversation, or of a list of them: as text, or processed.

        Args:
            chat_template: a Jinja template, or the name of one of the tokenizer's; None for the tokenizer's own.
            tools, documents: for templates that print them.
            add_generation_prompt: the assistant's header follows a last question.
            continue_final_message: the last message is left open.
            tokenize: give the processor's output, with the pictures of the messages, instead of text.
            return_tensors: as in a call, whose default ``auto`` is.
            return_dict: False gives the ``input_ids`` alone.
            processor_kwargs: arguments of a call, which may also be given by their names; ``images`` are pictures for
                the placeholders of messages that bring none.
            kwargs: variables of the template.

        Raises:
            RequestError: as a call, or the template cannot print the messages, or does not read a variable.
        """
        for name, asked in (
            ("return_assistant_tokens_mask", return_assistant_tokens_mask),
            ("sanitize_control_tokens", sanitize_control_tokens),
        ):
            if asked:
                raise RequestError(f"the processor does not serve {name}")
        own = self.chat_template or self.tokenizer.chat_template
        template = pick_template(own, chat_template, bool(tools))
        if template is None:
            raise RequestError("chat_template must be given: the processor has none", field="chat_template")
        read = variables_of(template)
        variables = {name: value for name, value in kwargs.items() if name in read}
        called = {name: value for name, value in kwargs.items() if name not in read} | dict(processor_kwargs or {})
        how = Rendering(template, tools, documents, variables, add_generation_prompt, continue_final_message)
        images, inference_mode = called.pop("images", None), called.pop("inference_mode", True)
        if return_tensors != "auto":
            called["return_tensors"] = return_tensors
        options = CallOptions.of(called)
        if not tokenize:
            return self._prompts.print_messages(conversation, how)
        outputs = self._prompts.process_printed(
            conversation, images, how, inference_mode=inference_mode, marks=options.add_special_tokens
        )
        batch = self._batch(outputs, options)
        return batch if return_dict else batch["input_ids"]

    def _batch(self, prompts: Sequence[ProcessedPrompt], how: CallOptions) -> PromptBatch:
        return make_batch(prompts, how, tokenizer=self.tokenizer, ignore_id=self._prompts.settings.ignore_id)

    def _formatted(self, texts: Any, apply_sft_format: bool, system_prompt: str) -> Any:
        """Texts as they are to be read."""
        if not apply_sft_format:
            if system_prompt:
                raise RequestError("system_prompt belongs to conversations; a prompt is formatted already")
            return texts
        sft_format = self._prompts.settings.sft_format
        printed = [self.format_prompts(text, sft_format, system_prompt) for text in split_rows(texts)]
        return printed[0] if isinstance(texts, str) else printed

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
        try:
            tokenizer = read_fast_tokenizer(pretrained_model_name_or_path, **hub)
            settings, overrides = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
            raise CheckpointError(
                f"{pretrained_model_name_or_path} holds no processor that can be read: {error}"
            ) from error
        others = [name for name in kwargs if name not in (*SETTINGS, *_HUB_OPTIONS) and name[0] != "_"]
        refuse_unknown({name: kwargs[name] for name in others if meant(name, SETTINGS)}, known=SETTINGS)
        template = kwargs.get("chat_template") or settings.pop("chat_template", None)
        processor = cast(DeepseekVLV2Processor, cls.from_args_and_dict([tokenizer], settings, **overrides))
        processor.chat_template = template or processor.chat_template
        processor._unread = unread(settings, (*SETTINGS, *kwargs))
        return processor

    def to_dict(self) -> dict[str, Any]:
        """What a file holds: the settings, and what the file that they come from held beside them."""
        return self._unread | super().to_dict()

    def fields_without_effect(self) -> dict[str, str]:
        """What the file said beyond the settings, each by name, with the reason that it changes nothing."""
        return without_effect(self._unread, SETTINGS)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the files of a hub checkpoint; the tokenizer names a class that older transformers know too.

        With ``push_to_hub`` the hub gets the same files, by transformers' ``repo_id``, ``token``, ``private``, ...
        """
        written = super().save_pretrained(str(save_directory))
        config_file = Path(save_directory) / "tokenizer_config.json"
        config = json.loads(config_file.read_text("utf-8-sig"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config_file.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", "utf-8")
        tokens = json.dumps(self.tokenizer.special_tokens_map, ensure_ascii=False, indent=2, default=str)
        (Path(save_directory) / "special_tokens_map.json").write_text(tokens + "\n", "utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
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
