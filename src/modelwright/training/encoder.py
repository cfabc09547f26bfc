"""What makes documents of a run's rows: the processor of its model, read from a folder without its weights."""

from pathlib import Path
from typing import Any

from modelwright.configs.run import DataPart
from modelwright.data.documents import Encoder
from modelwright.data.encoding import encoder_of
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import family_of, resolve


def processor_in(folder: Path, config: Any) -> Any:
    """The tokenizer, the processor or the palette of a model of this config.

    Raises:
        CheckpointError: the folder holds none, or a damaged one.
    """
    try:
        return resolve(family_of(config).processor)(folder, config)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # the tokenizers library raises bare exceptions on damaged files
        raise CheckpointError(f"the processor in {folder} cannot be read: {error}") from error


def run_encoder(data: DataPart, config: Any, processor: Any) -> Encoder:
    """The encoder of a run.

    Args:
        data: how long documents are and what is learned of them.
        config: of the model, which says its family.
    """
    record = family_of(config)
    template = None if record.chat_template is None else resolve(record.chat_template)
    vocabulary = config.get_text_config().vocab_size if record.draws == "text" else None
    return encoder_of(processor, data, template=template, vocabulary=vocabulary)
