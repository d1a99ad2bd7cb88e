"""`mavilt report IMAGE…`: write reports of radiographs; one bad file costs one report."""

from __future__ import annotations

import argparse
import sys

from mavilt_pl.cli.model_arguments import (
    add_images,
    add_model,
    add_output,
    load_model,
    pair_views,
)
from mavilt_pl.cli.result_records import ResultRecords, check_output, error_record, shown_name
from mavilt_pl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mavilt report`."""
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="DICOM, PNG or JPEG, a folder of them, or a quoted pattern such as 'scans/*.dcm'",
    )
    parser.add_argument(
        "--lateral",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="the lateral image of each study, for a model of several views",
    )
    add_model(parser)
    add_images(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print a report for each image; exit status 1 if any image could not be read."""
    from mavilt_pl.inference.outputs import to_record
    from mavilt_pl.inference.studies import as_list

    # Checked before the model is read.
    check_output(args.out)
    studies = pair_views(as_list(args.images)[0], args.lateral)
    model, records = load_model(args), ResultRecords(args)
    failures = 0
    # Written as they come: a thousand images take a while.
    for study, report in zip(studies, model.iterate_reports(studies, args.seed, True)):
        if isinstance(report, UserError):
            failures += 1
            records.add(error_record(study, report), "")
        else:
            records.add(to_record(report), f"{shown_name(report.image)}: {report}")
    records.write()
    if failures and len(studies) > 1:
        print(f"mavilt: {failures} of {len(studies)} without a report", file=sys.stderr)
    return int(failures > 0)
