"""Checkpoints that can be trusted: written beside, made durable, then renamed; and each says
whether it is whole.

The seal (generation and SHA-256 of all bytes before it) stands in the file itself, as the comment
that every zip archive may end with: it survives renaming and copying one file alone, `torch.load`
reads such a file as any other, and there is no second file that can be lost or be another's. The
generation counts the saves in a folder: which checkpoint is the newest depends on no clock, and on
no step number that an earlier run in the folder may have left.

    … zip archive as `torch.save` writes it …, length of the comment, "mavilt <generation> sha256
    <digest>"
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch.utils._pytree import tree_leaves

from mavilt_pl.data.study import DataError

SEAL = re.compile(rb"mavilt (\d{12}) sha256 ([0-9a-f]{64})")
SEAL_LENGTH = len("mavilt 000000000000 sha256 ") + 64
END = 22  # bytes of a zip archive's last record; its last two are the length of the comment
BLOCK = 1 << 22


class Damaged(DataError):
    """A checkpoint whose bytes are not those that were written."""


class _Sealed:
    """A file that `torch.save` writes into; hashes on the way, so that nothing is read again or
    held twice in memory.

    The first error is kept and all later bytes are dropped: an exception must not cross torch's
    writer, which aborts.
    """

    def __init__(self, file: IO[bytes]):
        self.file, self.digest, self.held = file, hashlib.sha256(), b""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= END:
            self._put(self.held)
            self._put(view[:-END])
            self.held = bytes(view[-END:])
        else:
            both = self.held + bytes(view)
            self._put(both[: max(len(both) - END, 0)])
            self.held = both[-END:]
        return len(view)

    def flush(self) -> None:
        """All is flushed once, at the end."""

    def _put(self, data: Any) -> None:
        self.digest.update(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error

    def seal(self, generation: int) -> None:
        if self.error is not None:
            raise self.error
        self._put(self.held[:-2] + SEAL_LENGTH.to_bytes(2, "little"))
        self._put(f"mavilt {generation:012d} sha256 ".encode())
        self._put(self.digest.hexdigest().encode())
        if self.error is not None:
            raise self.error


def generation(path: Path) -> int:
    """The how-manieth save of its folder a checkpoint is; -1 where it has no seal (cheap: the rest
    is not read).
    """
    try:
        with path.open("rb") as file:
            file.seek(-min(SEAL_LENGTH, path.stat().st_size), os.SEEK_END)
            seal = SEAL.fullmatch(file.read())
    except OSError:
        return -1
    return int(seal[1]) if seal else -1


def check(path: Path) -> None:
    """Raise `Damaged` where a checkpoint's bytes are not those that were written.

    One without a seal (Lightning's own, or an older one) is checked by the archive's CRCs."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(-min(SEAL_LENGTH, size), os.SEEK_END)
            seal = SEAL.fullmatch(file.read())
            file.seek(0)
            if seal is None:
                file.seek(-min(END, size), os.SEEK_END)
                if not (end := file.read()).startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
                    raise Damaged(
                        f"{path} is damaged: its end is missing or changed ({size:,} bytes)"
                    )
                if (bad := zipfile.ZipFile(path).testzip()) is not None:
                    raise Damaged(f"{path} is damaged: the checksum of its part {bad} is wrong")
                return
            digest, left = hashlib.sha256(), size - 64
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
    except zipfile.BadZipFile as error:
        raise Damaged(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    if digest.hexdigest().encode() != seal[2]:
        raise Damaged(f"{path} is damaged: its checksum is wrong ({size:,} bytes)")


def newest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where it has none yet.

    Warns once, with both names, where the newest is damaged or `last.ckpt` is missing; raises
    `DataError` where there are checkpoints and all are damaged: to train anew is the user's
    decision.
    """
    last = folder / "last.ckpt"
    found = sorted(
        folder.glob("*.ckpt"), key=lambda path: (generation(path), path == last), reverse=True
    )
    found = [path for path in found if path == last or path.name.startswith("step=")]
    if (
        last in found and generation(last) < 0
    ):  # damaged at its end, or of Lightning's own: it was the last all the same
        found.insert(0, found.pop(found.index(last)))
    reasons: dict[Path, str] = {}
    for path in found:
        try:
            if any(path.samefile(bad) for bad in reasons):
                continue  # two names of one file
            check(path)
        except Damaged as error:
            reasons[path] = str(error)
            continue
        if not reasons and not last.exists():
            reasons[last] = f"{last} is missing"
        if reasons and rank_zero_only.rank in (0, None):
            warnings.warn(
                f"{'; '.join(reasons.values())}. Going on from the newest whole one, {path}",
                stacklevel=2,
            )
        return path
    if reasons:
        raise DataError(
            f"no checkpoint in {folder} is whole: {'; '.join(reasons.values())}. Copy a good one "
            f"there, or train anew "
            "with another trainer.default_root_dir"
        )
    return None


def durable(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        pass  # some network file systems cannot, and the rename itself has succeeded


def sweep(folder: Path) -> None:
    """Remove what a killed run was writing. Only for the one job that owns the folder."""
    for part in folder.glob(".*.ckpt.part"):
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise `DataError` where no checkpoint could be written: better now than at the first save,
    hours later.
    """
    probe = folder / ".writable.ckpt.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"checkpoints cannot be written to {folder} ({error.strerror}): mend its permissions, "
            f"or choose another "
            "trainer.default_root_dir"
        ) from None


class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, with the care that this module's text tells
    of.
    """

    def then(self, action: Callable[[], None]) -> None:
        """What is to be done after the last save."""
        action()

    def wait(self) -> None:
        """Until all that was saved is on the disk; raises what has failed."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        number = 1 + max((generation(other) for other in path.parent.glob("*.ckpt")), default=-1)
        try:
            with part.open("wb") as file:
                sealed = _Sealed(file)
                torch.save(checkpoint, sealed)  # type: ignore[arg-type]
                sealed.seal(number)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError):  # said of the checkpoint, not of its temporary name
                raise OSError(
                    error.errno, f"{error.strerror}, and the checkpoint was not saved", str(path)
                ) from error
            raise
        durable(path.parent)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        if not Path(path).is_file():
            raise DataError(
                f"the checkpoint {path} does not exist; expected a file such as "
                f"checkpoints/last.ckpt"
            )
        check(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


def _on_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy that training does not change. Tensors go to the host's memory; those that are one
    stay one.
    """
    same: dict[Any, torch.Tensor] = {}
    copies: dict[int, Any] = {}
    leaves = [leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor)]
    for leaf in leaves:
        key = (leaf.data_ptr() or id(leaf), leaf.dtype, leaf.shape, leaf.stride())
        if key not in same:
            same[key] = leaf.detach().to("cpu", copy=True)
        copies[id(leaf)] = same[key]
    return copy.deepcopy(checkpoint, copies)


class BackgroundCheckpointIO(SealedCheckpointIO):
    """Saves a copy from the host's memory while training goes on. One thread does all in order; a
    save first waits for the one before, so that there is one copy, and training is never more than
    one save ahead of the disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.worker = ThreadPoolExecutor(1, "checkpoint")
        self.begun: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        self.wait()
        self.begun.append(
            self.worker.submit(super().save_checkpoint, _on_host(checkpoint), path, storage_options)
        )

    def then(self, action: Callable[[], None]) -> None:
        self.begun.append(self.worker.submit(action))

    def wait(self) -> None:
        while self.begun:
            self.begun.pop(0).result()

    def teardown(self) -> None:
        """The end of a run, of one that failed too: what is being written is written to its end."""
        self.worker.shutdown()
