"""The configs and recipes that come with the package, found by name from any folder."""

from __future__ import annotations

from pathlib import Path

from mavilt_pl.errors import UserError

_PACKAGE = Path(__file__).parent
# In a wheel the configs lie inside the package; in a checkout they lie next to it.
CONFIGS = _PACKAGE / "configs"
if not CONFIGS.is_dir():
    CONFIGS = _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """Path of a local config file, or of a shipped one; `.yaml` may be left out.

    Raises:
        UserError: there is no such file.
    """
    # A user's own file takes precedence over a shipped one of the same name.
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
    raise UserError(
        f"config {name} is neither a file here nor a shipped one; shipped are: {', '.join(shipped)}"
    )


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in (CONFIGS / "recipes").glob("*.yaml"))
