"""Read weights safely: tensors only, checksum verified, and one clear message when they do not fit.

A checkpoint that mavilt writes ends with a seal: its sequence number within its folder and the
SHA-256 of all bytes before the digest. The seal is the comment that every zip archive may end with,
so `torch.load` reads such a file like any other, and renaming or copying one file keeps the seal.

    … zip archive of `torch.save` …, comment length, "mavilt <sequence number> sha256 <digest>"
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mavilt_pl.errors import UserError

SEAL = re.compile(rb"mavilt (\d{12}) sha256 ([0-9a-f]{64})")
SEAL_LENGTH = len("mavilt 000000000000 sha256 ") + 64
DIGEST_LENGTH = 64
ZIP_END_LENGTH = 22  # bytes of a zip archive's last record; its last two are the comment's length
BLOCK = 1 << 22  # bytes read at a time

# Settings and weights were renamed in version 2; checkpoints without the key are of version 1.
FORMAT_VERSION = 2
FORMAT_KEY = "mavilt_format"


class DamagedCheckpointError(UserError):
    """A checkpoint whose bytes are not those that were written."""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_checkpoint(path: Path) -> Path:
    """The file itself, or the last checkpoint of a run's folder."""
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def sequence_number(path: Path) -> int:
    """Sequence number of this checkpoint within its folder; -1 without a seal.

    Only the last bytes of the file are read.
    """
    try:
        with path.open("rb") as file:
            # A seek to before the start fails, and a damaged file may be shorter than a seal.
            file.seek(-min(SEAL_LENGTH, path.stat().st_size), os.SEEK_END)
            seal = SEAL.fullmatch(file.read())
    except OSError:
        # Below every real number, so that unreadable files sort last.
        return -1
    return int(seal[1]) if seal else -1


def verify(path: Path) -> None:
    """Check that a checkpoint holds the bytes that were written.

    Without a seal (Lightning's own files, or published ones) the archive's CRCs are checked.

    Raises:
        DamagedCheckpointError: a byte differs, or the file cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(-min(SEAL_LENGTH, size), os.SEEK_END)
            seal = SEAL.fullmatch(file.read())
            if seal is None:
                _verify_archive(path, file, size)
                return
            digest = _digest(file, size - DIGEST_LENGTH)
    except zipfile.BadZipFile as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if digest.encode() != seal[2]:
        raise DamagedCheckpointError(f"{path} is damaged: its checksum is wrong ({size:,} bytes)")


def _verify_archive(path: Path, file: Any, size: int) -> None:
    """Check the end record and the CRC of every member of a zip archive without a seal."""
    file.seek(-min(ZIP_END_LENGTH, size), os.SEEK_END)
    end = file.read()
    if not end.startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
        raise DamagedCheckpointError(
            f"{path} is damaged: its end is missing or changed ({size:,} bytes)"
        )
    damaged = zipfile.ZipFile(path).testzip()
    if damaged is not None:
        raise DamagedCheckpointError(
            f"{path} is damaged: the checksum of its part {damaged} is wrong"
        )


def _digest(file: Any, length: int) -> str:
    """SHA-256 of the first `length` bytes."""
    file.seek(0)
    # In blocks: a checkpoint of 7·10⁹ weights has 84 GB.
    digest, left = hashlib.sha256(), length
    while left:
        block = file.read(min(BLOCK, left))
        if not block:
            break
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def read_weights(path: str | Path, convert: str = "") -> dict[str, Any]:
    """Read a file of `torch.save` or safetensors as tensors and plain values; unpickle nothing.

    The checksum of a sealed checkpoint is verified first.

    Args:
        path: a local file.
        convert: advice for a file that holds other objects, such as a whole pickled model.

    Raises:
        UserError: the file is missing, damaged, or holds other objects.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"the weights {path} do not exist; name a local file (nothing is downloaded)"
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a file of weights, such as a checkpoint")
    # Published files and Lightning's own have no seal to check.
    if sequence_number(path) >= 0:
        verify(path)
    return load_tensors(path, convert)


def load_tensors(path: Path, convert: str = "", mmap: bool = False) -> dict[str, Any]:
    """Read a file whose checksum has been verified; as `read_weights`.

    Args:
        path: a local file.
        convert: as for `read_weights`.
        mmap: map the tensors into memory instead of reading them.

    Raises:
        UserError: the file is not readable, or holds other objects.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            # safetensors holds nothing but tensors, by its format.
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # torch's own message suggests to unpickle the file without this check.
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            advice = convert or "If you trust the file, save its state_dict() alone"
            raise UserError(
                f"{path} holds pickled objects ({foreign[1]}), which are not opened: a pickle can "
                f"run any program; expected tensors only. {advice}"
            ) from None
        reason = next(iter(str(error).splitlines()), "")[:120]
        raise UserError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {reason}), "
            f"{path.stat().st_size:,} bytes; if it was downloaded or copied, do it again"
        ) from None
    if not isinstance(found, Mapping):
        raise UserError(
            f"{path} holds a {type(found).__name__}; expected a state dict or a Lightning "
            "checkpoint"
        )
    return dict(found)


Shapes = dict[str, tuple[int, ...]]


def _compare_shapes(
    module: nn.Module, weights: Mapping[str, Any]
) -> tuple[Shapes, Shapes, list[str]]:
    """Shapes of a module's weights, shapes of a file's, and the sorted names that differ."""
    # Compared before anything is loaded: `load_state_dict` would list thousands of names.
    here: Shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    there: Shapes = {key: tuple(value.shape) for key, value in weights.items()}
    differing = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    return here, there, differing


def load_strict(module: nn.Module, weights: Mapping[str, Any], path: str | Path) -> None:
    """`load_state_dict` with one message that names the first difference.

    Raises:
        UserError: keys or shapes differ from those of `module`.
    """
    here, there, differing = _compare_shapes(module, weights)
    if differing:
        key = differing[0]
        raise UserError(
            f"{path} does not fit {type(module).__name__}: {key} is {there.get(key, 'missing')} in "
            f"the file and {here.get(key, 'missing')} here ({len(differing)} of {len(here)} "
            "weights differ); the file is incomplete or of another network"
        )
    module.load_state_dict(weights)


def check_compatible(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Check that the weights of a Lightning checkpoint are those of `module`.

    Settings that a submodule lists in `setting_descriptions` are compared first and described in
    words: some of them, such as the image size, leave no trace in the shapes of the weights.

    Raises:
        UserError: the checkpoint is of another module, of other settings, or of an older version.
    """
    name = type(module).__name__
    here, there, differing = _compare_shapes(module, checkpoint["state_dict"])
    # Before the shapes: renamed weights would otherwise look like another module's.
    check_format_version(checkpoint, f"the checkpoint of {name}")
    if not here.keys() & there.keys():
        found = next(iter(there), "none")
        raise UserError(
            f"the checkpoint is of another module (weights such as {found}); expected one of {name}"
        )
    if described := _differing_settings(checkpoint, module):
        raise UserError(
            f"the checkpoint does not fit this {name}: {'; '.join(described)}; use the settings it "
            "was trained with"
        )
    if differing:
        key = differing[0]
        raise UserError(
            f"the checkpoint does not fit this {name}: {key} is {there.get(key, 'missing')} there "
            f"and {here.get(key, 'missing')} here ({len(differing)} weights differ); use the "
            "settings it was trained with"
        )


def check_format_version(checkpoint: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint whose settings have the names of another version of mavilt.

    Raises:
        UserError: a mavilt module wrote the checkpoint under another format version.
    """
    written_by = str(checkpoint.get("hyper_parameters", {}).get("_class_path", ""))
    version = checkpoint.get(FORMAT_KEY, 1)
    if written_by.startswith("mavilt_pl.") and version != FORMAT_VERSION:
        raise UserError(
            f"{name} has format {version}, this version reads format {FORMAT_VERSION}: settings "
            "were renamed in between. Train again, or use the version of mavilt that wrote it"
        )


def _differing_settings(checkpoint: dict[str, Any], module: nn.Module) -> list[str]:
    """Describe each setting that differs, with its value in the checkpoint and in the config."""
    described = []
    for path, part in module.named_modules():
        phrases: Mapping[str, str] = getattr(part, "setting_descriptions", {})
        key = path.rpartition(".")[2]
        # A checkpoint has the full settings of a part at its top, or what the user gave among its
        # hyperparameters. What neither names had its default.
        there = checkpoint.get(key) or checkpoint.get("hyper_parameters", {}).get(key) or {}
        parameters = inspect.signature(type(part).__init__).parameters
        for setting, phrase in phrases.items():
            # YAML has lists for what a default writes as a tuple.
            was = _as_list(there.get(setting, parameters[setting].default))
            now = _as_list(part.config[setting])  # type: ignore[index]
            if was != now:
                described.append(
                    f"{_describe(phrase, was)} in the checkpoint, {_describe(phrase, now)} in the "
                    f"config (model.init_args.{key}.{setting})"
                )
    return described


def _describe(phrase: str, value: Any) -> str:
    """Fill a value into its phrase; None takes no thousands separator."""
    return (phrase.replace(":,", "") if value is None else phrase).format(value)


def _as_list(value: Any) -> Any:
    return [*value] if isinstance(value, (list, tuple)) else value
