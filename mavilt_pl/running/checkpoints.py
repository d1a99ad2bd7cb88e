"""Checkpoints that can be trusted: written beside, made durable, then renamed; and each says whether it is whole.

The seal (generation and SHA-256 of all bytes before it) stands in the file itself, as the comment that every zip archive may
end with: it survives renaming and copying one file alone, `torch.load` reads such a file as any other, and there is no
second file that can be lost or be another's. The generation counts the saves in a folder: which checkpoint is the newest
depends on no clock, and on no step number that an earlier run in the folder may have left.

    … zip archive as `torch.save` writes it …, length of the comment, "mavilt <generation> sha256 <digest>"
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from mavilt_pl.data.study import DataError

SEAL = re.compile(rb"mavilt (\d{12}) sha256 ([0-9a-f]{64})")
SEAL_LENGTH = len("mavilt 000000000000 sha256 ") + 64
END = 22  # bytes of a zip archive's last record; its last two are the length of the comment
BLOCK = 1 << 22


class Damaged(DataError):
    """A checkpoint whose bytes are not those that were written."""


class _Sealed:
    """A file that `torch.save` writes into; hashes on the way, so that nothing is read again or held twice in memory.

    The first error is kept and all later bytes are dropped: an exception must not cross torch's writer, which aborts."""

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
    """The how-manieth save of its folder a checkpoint is; -1 where it has no seal (cheap: the rest is not read)."""
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
                    raise Damaged(f"{path} is damaged: its end is missing or changed ({size:,} bytes)")
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

    Warns once, with both names, where the newest is damaged or `last.ckpt` is missing; raises `DataError` where there are
    checkpoints and all are damaged: to train anew is the user's decision."""
    last = folder / "last.ckpt"
    found = sorted(folder.glob("*.ckpt"), key=lambda path: (generation(path), path == last), reverse=True)
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
            warnings.warn(f"{'; '.join(reasons.values())}. Going on from the newest whole one, {path}", stacklevel=2)
        return path
    if reasons:
        raise DataError(
            f"no checkpoint in {folder} is whole: {'; '.join(reasons.values())}. Copy a good one there, or train anew "
            "with another trainer.default_root_dir"
        )
    return None


def _durable(folder: Path) -> None:
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
    """Raise `DataError` where no checkpoint could be written: better now than at the first save, hours later."""
    probe = folder / ".writable.ckpt.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"checkpoints cannot be written to {folder} ({error.strerror}): mend its permissions, or choose another "
            "trainer.default_root_dir"
        ) from None


class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, with the care that this module's text tells of."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
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
                raise OSError(error.errno, f"{error.strerror}, and the checkpoint was not saved", str(path)) from error
            raise
        _durable(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        if not Path(path).is_file():
            raise DataError(f"the checkpoint {path} does not exist; expected a file such as checkpoints/last.ckpt")
        check(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


def _another_name(path: Path, name: Path) -> None:
    """Give a file a second name, at once and without a second copy where the file system can."""
    part = name.with_name(f".{name.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(path, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(part, name)
    _durable(name.parent)


class StepCheckpoints(ModelCheckpoint):
    """`step=N.ckpt` every so many steps and at the end, the last `keep` of them; `last.ckpt` is the newest's other name.

    Args:
        folder: where they lie.
        every: optimizer steps between two.
        keep: how many stay; 2 or more leave one to fall back on.
    """

    def __init__(self, folder: Path, every: int, keep: int):
        super().__init__(folder, save_last=True, every_n_train_steps=every, enable_version_counter=False)
        if every < 1 or keep < 1:
            raise DataError(
                f"checkpoint_every {every}, checkpoint_keep {keep}: expected 1 or more (to save nothing: "
                "trainer.enable_checkpointing false)"
            )
        self.folder, self.every, self.keep, self.saved = folder, every, keep, -1

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """What `--ckpt_path last` means."""
        newest = newest_whole(self.folder)
        return set() if newest is None else {str(newest)}

    def save(self, trainer: Trainer) -> None:
        """Save this step, once; on all ranks."""
        if self.saved == trainer.global_step or trainer.fast_dev_run:
            return
        path = self.folder / f"step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        self.saved = trainer.global_step
        self.best_model_path = self.last_model_path = str(path)
        if trainer.is_global_zero:
            _another_name(path, self.folder / "last.ckpt")
            steps = sorted(self.folder.glob("step=*.ckpt"), key=generation, reverse=True)
            for old in steps[self.keep :]:
                old.unlink(missing_ok=True)
        trainer.strategy.barrier("StepCheckpoints.save")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is saved again that was resumed from; `last.ckpt` is its name, also where the last had been damaged."""
        resumed = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        if resumed is not None and resumed.resolve().parent == self.folder.resolve():
            self.saved = trainer._checkpoint_connector._loaded_checkpoint.get("global_step", -1)
            if trainer.is_global_zero and resumed.name.startswith("step="):
                _another_name(resumed, self.folder / "last.ckpt")
        if trainer.is_global_zero:
            check_writable(self.folder)
            sweep(self.folder)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps are counted, not epochs."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is saved does not depend on when validation runs; but after the last of all, the end is saved anew: nothing is
        due any more."""
        if trainer.global_step >= trainer.max_steps > 0 and not trainer.sanity_checking:
            self.saved = -1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The last save stays the last: a state that broke is not kept."""

    def state_dict(self) -> dict[str, Any]:
        return {}  # the folder tells

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The folder tells."""


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: of all validations, the one with the smallest or largest value of a logged metric.

    Args:
        folder: where it lies.
        wanted: `min:METRIC` or `max:METRIC`, e.g. `max:val/mimic/psnr`.
    """

    def __init__(self, folder: Path, wanted: str):
        mode, _, metric = wanted.partition(":")
        if mode not in ("min", "max") or not metric:
            raise DataError(f"checkpoint_best {wanted}: expected min:METRIC or max:METRIC, e.g. max:val/mimic/psnr")
        super().__init__(
            folder, filename="best", monitor=metric, mode=mode, enable_version_counter=False,
            auto_insert_metric_name=False, every_n_epochs=1, save_on_train_epoch_end=False,
        )  # fmt: skip

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        return set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise DataError(
                f"checkpoint_best: {self.monitor} is not logged in validation; logged are {logged or 'none'}"
            )
        super().on_validation_end(trainer, pl_module)
