"""Readers of datasets, one file each: layout on disk → `Study`.

A new dataset is a new file, named by its path or by a line in `SOURCES`. A reader is
`read(root, reject, **options) -> Iterator[Study]`. It calls `reject` for everything that it does
not yield, with a stage:

    read      a whole study: `read = kept + rejected` counts these
    image     one image of a study that is kept
    question  one question, or a kind of question
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mavilt_pl.data.links import check_top_links
from mavilt_pl.data.records import Split, Study
from mavilt_pl.data.unicode import encodable
from mavilt_pl.errors import UserError

SOURCES = {
    "mimic-cxr-jpg": "mavilt_pl.data.sources.mimic_cxr_jpg",
    "mimic-cxr": "mavilt_pl.data.sources.mimic_cxr",
    "indiana": "mavilt_pl.data.sources.indiana",
    "indiana-kaggle": "mavilt_pl.data.sources.indiana_kaggle",
    "r2gen": "mavilt_pl.data.sources.r2gen",
    "nih": "mavilt_pl.data.sources.nih",
    "chexpert": "mavilt_pl.data.sources.chexpert",
    "rsna": "mavilt_pl.data.sources.rsna",
    "vqa-rad": "mavilt_pl.data.sources.vqa_rad",
    "table": "mavilt_pl.data.sources.table",
}
# Options that some readers take; the message about an unknown option lists those of the reader.
READER_OPTIONS = {
    "reports": "where the reports are, if not in the dataset's folder (mimic-cxr-jpg, mimic-cxr, "
    "indiana)",
    "labels": "chexpert (default) or negbio (mimic-cxr-jpg, mimic-cxr)",
    "tables": "folder of MIMIC-CXR-JPG's tables, for splits, views and labels (mimic-cxr)",
    "patients": "folder hosp of MIMIC-IV, for figures by sex, age and ethnicity (mimic-cxr-jpg, "
    "mimic-cxr)",
    "valid": "the split of the official validation set: val (default) or test (chexpert)",
}
Reject = Callable[[str, str, str, str], None]  # study, file, stage, reason


def read_source(
    name: str, root: Path, reject: Reject, follow_links: bool = False, **options: object
) -> Iterator[Study]:
    """Yield the studies of a dataset in a fixed order; each id once, each patient in one split.

    Args:
        name: a key of `SOURCES`, or the path of a Python file with a reader.
        root: the dataset's folder, as downloaded.
        reject: called for everything that is not yielded.
        follow_links: read also what symbolic links in the dataset's folder lead to outside of it.
            Images are checked when they are decoded.
        options: of the reader.

    Raises:
        UserError: the source or an option is unknown, or the dataset cannot be read at all.
    """
    read = _reader(name)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected the root of a {name} download")
    check_options(name, options)
    if not follow_links:
        check_top_links(root)
    # Those that read a file for each study look at the links themselves.
    if "follow_links" in inspect.signature(read).parameters:
        options = {**options, "follow_links": follow_links}
    return _consistent(read(root, reject, **options), reject)


def _reader(name: str) -> Callable[..., Iterator[Study]]:
    """The function `read` of a source.

    Raises:
        UserError: the source is unknown, or its file has no such function.
    """
    # Imported on use: a reader may need packages that the others do not.
    if name in SOURCES:
        return importlib.import_module(SOURCES[name]).read
    path = Path(name)
    if path.suffix != ".py":
        raise UserError(
            f"unknown source {name!r}; expected one of {', '.join(SOURCES)}, or a Python file with "
            "a reader"
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a Python file with a reader")
    spec = importlib.util.spec_from_file_location(f"mavilt_reader_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # its suffix is that of Python
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up there.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"{path} cannot be imported ({type(error).__name__}: {error}); expected a reader, as "
            "docs/datasets.md shows one"
        ) from error
    if not callable(getattr(module, "read", None)):
        raise UserError(f"{path} has no function read; expected `def read(root, reject)`")
    return module.read


def source_options(name: str) -> tuple[str, ...]:
    """Names of the options of a source's reader; the value of each is a text.

    >>> source_options("chexpert")
    ('valid',)
    """
    parameters = inspect.signature(_reader(name)).parameters
    # The first two are `root` and `reject`.
    return tuple(name for name in tuple(parameters)[2:] if name != "follow_links")


def check_options(name: str, options: Iterable[str]) -> None:
    """Check that a source's reader has these options.

    Args:
        name: as of `read_source`.
        options: their names.

    Raises:
        UserError: the source is unknown, or lacks one of them.
    """
    known = source_options(name)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(
            f"source {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )


def _consistent(studies: Iterator[Study], reject: Reject) -> Iterator[Study]:
    """Yield each id once and each patient in the split of its first study, whatever tables say."""
    seen: set[str] = set()
    splits: dict[str, Split] = {}
    for study in studies:
        reason = ""
        if encodable(study.study + study.patient) != study.study + study.patient:
            reason = "a study or patient id that is no text; expected letters: correct the table"
        elif not study.study or not study.patient:
            reason = "a blank study or patient id; expected both: correct the table"
        elif study.study in seen:
            reason = f"a second study with id {study.study}; the first is kept"
        elif splits.setdefault(study.patient, study.split) != study.split:
            # The one rule that no table may break: a patient in two splits would leak into the
            # test.
            reason = (
                f"patient {study.patient} is in {splits[study.patient]} and this study in "
                f"{study.split}; a patient stays in the split of the first study: correct the "
                "split table"
            )
        if reason:
            file = str(study.images[0].path) if study.images else ""
            reject(study.study, file, "read", reason)
        else:
            seen.add(study.study)
            yield _encodable(study)


def _encodable(study: Study) -> Study:
    """The same study with texts that every file can hold."""
    questions = []
    for question in study.questions:
        question = replace(
            question,
            question=encodable(question.question),
            answer=encodable(question.answer),
            topic=encodable(question.topic),
            candidates=tuple(map(encodable, question.candidates)),
        )
        questions.append(question)
    return replace(
        study,
        findings=encodable(study.findings),
        impression=encodable(study.impression),
        report=encodable(study.report),
        questions=tuple(questions),
    )
