"""What makes documents of a run's rows: the processor of its model, read from a folder without its weights."""

from pathlib import Path
from typing import Any

from modelwright.configs.run import RunConfig
from modelwright.data.documents import Encoder
from modelwright.data.encoding import encoder_of
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import family_of, resolve


def run_encoder(run: RunConfig, config: Any, folder: Path) -> Encoder:
    """The encoder of a run.

    Args:
        run: its section ``data`` says how long documents are and what is learned of them.
        config: of the model, which says its family.
        folder: of the tokenizer, the processor or the palette.

    Raises:
        CheckpointError: the folder holds none, or a damaged one.
    """
    record = family_of(config)
    try:
        processor = resolve(record.processor)(folder, config)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # the tokenizers library raises bare exceptions on damaged files
        raise CheckpointError(f"the processor in {folder} cannot be read: {error}") from error
    template = None if record.chat_template is None else resolve(record.chat_template)
    vocabulary = config.get_text_config().vocab_size if record.draws == "text" else None
    return encoder_of(processor, run.data, template=template, vocabulary=vocabulary)
