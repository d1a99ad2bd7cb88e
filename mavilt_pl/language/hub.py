"""Names of models on the Hugging Face hub, on machines with a network and without."""

from __future__ import annotations

from pathlib import Path

from mavilt_pl.errors import UserError

TIMEOUT = 5.0  # seconds; the hub's own library tries for a minute


def is_hub_name(name: str) -> bool:
    """Whether a backbone's name is no folder here and may be one on the hub."""
    return not Path(name).exists()


def hub_answers() -> bool:
    """Whether the hub can be asked, through the proxies and mirrors of the environment."""
    from huggingface_hub import constants, get_session

    # A user who has said so is taken at their word.
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    # Each version of the library has another HTTP client with errors of its own.
    except Exception:
        return False
    return True


def cached_folder(name: str) -> str:
    """The folder of a model in the hub's local cache.

    Raises:
        UserError: it is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # The newest snapshot that an earlier download has left.
        return snapshot_download(name, local_files_only=True)
    except HFValidationError:
        raise UserError(f"backbone {name}: no such folder, and no name of the hub") from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"backbone {name}: no such folder, not in the hub's cache, and the hub was not "
            "reached. Where there is a network (often on the cluster's login "
            f"node) run `hf download {name} --local-dir backbones/{Path(name).name}`, then name "
            "that folder"
        ) from None


def config_file(name: str) -> Path:
    """The config.json of a folder, of the hub's local cache, or of the hub, in this order.

    Raises:
        UserError: it is in none of them.
    """
    if not is_hub_name(name):
        return Path(name) / "config.json"
    if not hub_answers():
        return Path(cached_folder(name)) / "config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError) as error:
        raise UserError(f"backbone {name}: no such folder, and not on the hub ({error})") from None
