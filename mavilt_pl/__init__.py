"""MAViLT: one language model that reads chest radiographs, draws them and answers questions.

The public classes are imported when they are first used, so `import mavilt_pl` is quick:

- `MAViLT`: a trained model in use (report, ask, draw);
- `VQGAN`, `Stage1`, `Stage2`: LightningModules of the tokenizer and the two language stages;
- `CXRDataModule`: the LightningDataModule that all of them share.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mavilt_pl.data.datamodule import CXRDataModule
    from mavilt_pl.inference.mavilt import MAViLT
    from mavilt_pl.language import Stage1, Stage2
    from mavilt_pl.vqgan import VQGAN

# The one place of the version; pyproject.toml and `mavilt --version` read it here.
__version__ = "0.2.0"

_PUBLIC = {
    "CXRDataModule": "mavilt_pl.data.datamodule",
    "MAViLT": "mavilt_pl.inference.mavilt",
    "Stage1": "mavilt_pl.language",
    "Stage2": "mavilt_pl.language",
    "VQGAN": "mavilt_pl.vqgan",
}
__all__ = ["VQGAN", "CXRDataModule", "MAViLT", "Stage1", "Stage2"]


def __getattr__(name: str) -> Any:
    """Import a public class on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
