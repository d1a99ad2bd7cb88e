"""Write checkpoints that can be trusted, and find the newest whole one.

A checkpoint is written under a temporary name, flushed to the disk, then renamed. Its seal
(`mavilt_pl.checkpoint`) says whether it is whole and how many saves its folder had seen, so the
newest checkpoint depends neither on a clock nor on step numbers that an earlier run left behind.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch.utils._pytree import tree_leaves

from mavilt_pl.checkpoint import (
    FORMAT_KEY,
    FORMAT_VERSION,
    SEAL_LENGTH,
    ZIP_END_LENGTH,
    DamagedCheckpointError,
    load_tensors,
    sequence_number,
    verify,
)
from mavilt_pl.errors import MaviltWarning, UserError
from mavilt_pl.parallel.atomic_write import atomic_open


class _SealingWriter:
    """A file for `torch.save` that hashes what passes through, so nothing is read again.

    The first error is kept and later bytes are dropped: an exception must not cross torch's writer,
    which would abort the process.
    """

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()
        # The last bytes are held back: the archive's end record has to announce the seal.
        self.pending = b""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        # Large blocks pass through without a copy; only their last bytes are kept.
        if len(view) >= ZIP_END_LENGTH:
            self._put(self.pending)
            self._put(view[:-ZIP_END_LENGTH])
            self.pending = bytes(view[-ZIP_END_LENGTH:])
        else:
            joined = self.pending + bytes(view)
            self._put(joined[: max(len(joined) - ZIP_END_LENGTH, 0)])
            self.pending = joined[-ZIP_END_LENGTH:]
        return len(view)

    def flush(self) -> None:
        """Do nothing: the file is flushed once, at the end."""

    def _put(self, data: Any) -> None:
        self.digest.update(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error

    def seal(self, number: int) -> None:
        """Write the end record and the seal; raise the first error of any write."""
        if self.error is None:
            # The end record's last two bytes are the length of the archive's comment: the seal.
            self._put(self.pending[:-2] + SEAL_LENGTH.to_bytes(2, "little"))
            self._put(f"mavilt {number:012d} sha256 ".encode())
            self._put(self.digest.hexdigest().encode())
        if self.error is not None:
            raise self.error


def newest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder; None if there is none yet.

    Warns once, with both names, if the newest is damaged or `last.ckpt` is missing.

    Raises:
        UserError: there are checkpoints and all are damaged; training again is the user's decision.
    """
    last = folder / "last.ckpt"
    reasons: dict[Path, str] = {}
    for path in _newest_first(folder, last):
        # last.ckpt and the newest step are one file with two names, and reading it once is enough.
        if any(path.samefile(damaged) for damaged in reasons):
            continue  # a second name of a damaged file
        try:
            verify(path)
        except DamagedCheckpointError as error:
            reasons[path] = str(error)
            continue
        if not reasons and not last.exists():
            reasons[last] = f"{last} is missing"
        if reasons and rank_zero_only.rank in (0, None):
            # Not an error: the run loses a few hundred steps, and training them again is what
            # resuming is for.
            warnings.warn(
                f"{'; '.join(reasons.values())}. Continuing from the newest whole one, {path}",
                MaviltWarning,
                stacklevel=2,
            )
        return path
    if reasons:
        raise UserError(
            f"no checkpoint in {folder} is whole: {'; '.join(reasons.values())}. Copy a good one "
            "there, or train again with another trainer.default_root_dir"
        )
    return None


def _newest_first(folder: Path, last: Path) -> list[Path]:
    """`last.ckpt` and `step=N.ckpt` of a folder, by sequence number."""
    found = [
        path for path in folder.glob("*.ckpt") if path == last or path.name.startswith("step=")
    ]
    # By the number in the seal: a clock may be set back, and a folder may hold the steps of an
    # earlier run that got further.
    found.sort(key=lambda path: (sequence_number(path), path == last), reverse=True)
    # Without a number, last.ckpt is damaged at its end or of Lightning's own: still the last.
    if last in found and sequence_number(last) < 0:
        found.remove(last)
        found.insert(0, last)
    return found


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed run was writing. Only for the one job that owns the folder."""
    # By name: a user may keep other files here, also hidden ones.
    for name in ("step=*.ckpt", "last.ckpt", "best.ckpt"):
        for part in folder.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Check that checkpoints can be written: better now than at the first save, hours later.

    Raises:
        UserError: a file cannot be created in the folder.
    """
    probe = folder / ".writable.ckpt.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"checkpoints cannot be written to {folder} ({error.strerror}): correct its "
            "permissions, or choose another trainer.default_root_dir"
        ) from None


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, sealed and verified."""

    def then(self, action: Callable[[], None]) -> None:
        """Call `action` after the last save."""
        action()

    def wait(self) -> None:
        """Wait until everything saved is on the disk; raise what has failed."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a sealed checkpoint whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One more than the highest in the folder, whichever run wrote that.
        earlier = [sequence_number(other) for other in path.parent.glob("*.ckpt")]
        # A copy: the caller's dict is not ours to change.
        checkpoint = {**checkpoint, FORMAT_KEY: FORMAT_VERSION}
        try:
            with atomic_open(path, "wb", durable=True) as file:
                writer = _SealingWriter(file)
                torch.save(checkpoint, writer)  # type: ignore[arg-type]
                writer.seal(1 + max(earlier, default=-1))
        except OSError as error:  # name the checkpoint, not its temporary file
            raise OSError(
                error.errno, f"{error.strerror}, and the checkpoint was not saved", str(path)
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify a checkpoint, then read it."""
        if not Path(path).is_file():
            raise UserError(
                f"the checkpoint {path} does not exist; expected a file such as "
                "checkpoints/last.ckpt"
            )
        # The whole file is read for it; a flipped bit in a weight would go unnoticed otherwise.
        verify(Path(path))
        # Tensors and plain values, whatever the caller says: a pickle can run any program.
        return load_tensors(Path(path))


def _copy_to_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Copy a checkpoint to host memory; tensors that share memory share their copy."""
    by_storage: dict[Any, torch.Tensor] = {}
    copies: dict[int, Any] = {}
    for leaf in tree_leaves(checkpoint):
        if not isinstance(leaf, torch.Tensor):
            continue
        # Tied weights are two tensors at one address; without their sharing the file would grow.
        # Empty tensors have address 0.
        key = (leaf.data_ptr() or id(leaf), leaf.dtype, leaf.shape, leaf.stride())
        if key not in by_storage:
            by_storage[key] = leaf.detach().to("cpu", copy=True)
        copies[id(leaf)] = by_storage[key]
    # `copies` is deepcopy's memo: it takes our copy for each tensor and copies the rest.
    return copy.deepcopy(checkpoint, copies)


class BackgroundCheckpointIO(VerifiedCheckpointIO):
    """Save a copy from host memory while training continues.

    One thread does everything in order. A save first waits for the one before, so there is one copy
    and training is never more than one save ahead of the disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.worker = ThreadPoolExecutor(1, "checkpoint")
        self.running: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Copy the checkpoint now, write it in the background."""
        # Also raises what the save before has failed with, so a full disk stops the training.
        self.wait()
        # Copied before training changes the weights; this is the only time that training waits.
        host_copy = _copy_to_host(checkpoint)
        self.running.append(
            self.worker.submit(super().save_checkpoint, host_copy, path, storage_options)
        )

    def then(self, action: Callable[[], None]) -> None:
        """Call `action` in the background after the last save."""
        self.running.append(self.worker.submit(action))

    def wait(self) -> None:
        """Wait until everything saved is on the disk; raise what has failed."""
        while self.running:
            self.running.pop(0).result()

    def teardown(self) -> None:
        """Finish writing at the end of a run, also of one that failed."""
        self.worker.shutdown()
