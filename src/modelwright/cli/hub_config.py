"""The ``config.json`` of a model on the hub, fetched before libraries are imported, which a misspelt name need not."""

from pathlib import Path

from huggingface_hub import snapshot_download

from modelwright.errors import CheckpointError

FILE = "config.json"


def fetch_config(name: str) -> Path:
    """The file of the hub's ``organisation/name``, from the cache where the hub cannot be asked.

    Where there is no network, this fails at once; `hf_hub_download` would ask six times, for half a minute.

    Raises:
        CheckpointError: the hub does not answer with it.
    """
    try:
        path = Path(snapshot_download(name, allow_patterns=[FILE])) / FILE
    except Exception as error:  # of the network, of the hub's, or of a name that it would not take
        said = " ".join(str(error).split())
        raise CheckpointError(f"{name} is not here, and the hub did not answer with its {FILE}: {said}") from error
    if not path.is_file():
        raise CheckpointError(f"{name} has no {FILE} on the hub")
    return path
