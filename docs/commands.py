"""Write docs/commands.md: what every command and option does, from the commands themselves.

python docs/commands.py            # write it
python docs/commands.py --check    # exit status 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("commands.md")
HEAD = """# Commands

*Written by `docs/commands.py` from the commands themselves.*

`mavilt fit`, `validate` and `test` are those of
[LightningCLI](https://lightning.ai/docs/pytorch/stable/cli/lightning_cli.html): `--config`
may be given several times, any key of the [configs](config-keys.md) is an option, and
`mavilt fit --config FILE --print_config` prints the result. What `mavilt configs` lists may be
named without a path.
"""


def page() -> str:
    """The whole page."""
    # argparse folds lines to the terminal's width.
    os.environ["COLUMNS"] = "100"
    from mavilt_pl.cli import VERBS

    parts = [HEAD]
    for verb, line in VERBS.items():
        parser = argparse.ArgumentParser(prog=f"mavilt {verb}", description=line)
        importlib.import_module(f"mavilt_pl.cli.{verb.replace('-', '_')}").add_arguments(parser)
        texts = [parser.format_help().rstrip()]
        for action in parser._actions:
            # Commands of a command, such as the layouts of `phantom`.
            if isinstance(action, argparse._SubParsersAction):
                texts += [below.format_help().rstrip() for below in action.choices.values()]
        blocks = "\n\n".join(f"```text\n{text}\n```" for text in texts)
        parts.append(f"## {verb}\n\n{blocks}\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/commands.md is not up to date: run python docs/commands.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
