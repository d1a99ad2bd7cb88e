"""The configs and recipes that come with the package, found by name from any folder."""

from __future__ import annotations

from pathlib import Path

from mavilt_pl.data.study import DataError

CONFIGS = next(
    (
        p
        for p in (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")
        if p.is_dir()
    ),
    Path(__file__).parent / "configs",
)


def find_config(name: str) -> Path:
    """A config file here, or a shipped one of that name (`.yaml` may be left out)."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml"))
    raise DataError(
        f"config {name} is neither a file here nor a shipped one; shipped are: {', '.join(shipped)}"
    )
