"""Sending to the hub what was saved in a folder, under the names that it has there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedModel
from transformers.utils.hub import create_and_tag_model_card

from modelwright.errors import CheckpointError

_COMMIT = ("commit_message", "commit_description", "revision", "create_pr")


def file_times(folder: Path) -> dict[str, float]:
    """When each file of a folder was written last, in seconds; none where there is no folder."""
    return {path.name: path.stat().st_mtime for path in folder.iterdir()} if folder.is_dir() else {}


def push_folder(model: PreTrainedModel, folder: Path, earlier: Mapping[str, float], given: Mapping[str, Any]) -> None:
    """Send what was written in ``folder`` since, and a model card, as transformers' ``save_pretrained`` does.

    Args:
        earlier: the :func:`file_times` of before ``model`` was saved there.
        given: arguments of ``push_to_hub``: ``repo_id`` (by default the folder's name), ``token``, ``private``, ...

    Raises:
        CheckpointError: the hub did not take them.
    """
    options = dict(given)
    name, tags = options.pop("repo_id", folder.name), options.pop("tags", None) or ()
    commit = {key: options.pop(key) for key in _COMMIT if key in options}
    tags = [*(model.model_tags or ()), *([tags] if isinstance(tags, str) else tags)]
    try:
        repository = HfApi().create_repo(name, exist_ok=True, **options).repo_id
        card = create_and_tag_model_card(repository, tags, token=options.get("token"))
        card.save(folder / "README.md")
        model._upload_modified_files(folder, repository, dict(earlier), token=options.get("token"), **commit)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} is written, and the hub did not take it as {name}: {reason}") from error
