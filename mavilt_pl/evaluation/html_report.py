"""report.html: one page, complete in itself, that shows a run to people."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mavilt_pl.errors import UserError
from mavilt_pl.evaluation.results import TASKS, read_results, write_json
from mavilt_pl.metrics.clinical import findings_in

# Published figures, for orientation: set, protocol, and what was reported. Protocols differ, so
# none is comparable.
PUBLISHED = (
    (
        "LLM-CXR (arXiv 2305.11490)",
        "impressions, 3,530 AP/PA images of MIMIC test and validate",
        "BLEU-1 .0920, BLEU-4 .0154, METEOR .0690, ROUGE-L .1618; FID Inception 22.75, CXR "
        "features 0.714",
    ),
    (
        "UniXGen-256, as re-run by LLM-CXR",
        "the same 3,530",
        "BLEU-1 .1287, BLEU-4 .0137, METEOR .0725, ROUGE-L .0893; FID 78.19 / 7.894",
    ),
    (
        "R2Gen, as re-run by LLM-CXR",
        "the same 3,530",
        "BLEU-1 .0898, BLEU-4 .0057, METEOR .0822, ROUGE-L .0734",
    ),
    ("RoentGen, as re-run by LLM-CXR", "the same 3,530", "FID 42.38 / 6.039"),
    (
        "CvT2DistilGPT2",
        "findings, R2Gen split, IU, n = 590",
        "BLEU-1 .473, BLEU-4 .175, METEOR .200, ROUGE-L .376",
    ),
)
HEADLINES = {
    "tokenizer": (
        "psnr",
        "ssim",
        "gradient_psnr",
        "lpips",
        "codebook_used",
        "original_auroc_macro",
        "reconstructed_auroc_macro",
        "fid_cxr",
    ),
    "report": (
        "findings_f1_macro",
        "findings_f1_macro_chance",
        "findings_f1_micro",
        "bleu_1",
        "bleu_4",
        "rouge_l",
        "meteor",
    ),
    "vqa": ("auroc_macro", "accuracy", "open_exact_match", "open_f1"),
    "synthesis": (
        "drawn_auroc_macro",
        "original_auroc_macro",
        "fid_cxr",
        "fid_inception",
        "missing_view_drawn_auroc_macro",
        "missing_view_original_auroc_macro",
        "missing_view_fid_cxr",
        "missing_view_fid_inception",
    ),
    "text": ("perplexity", "perplexity_before", "perplexity_ratio"),
}
TITLES = {
    "tokenizer": "Tokenizer",
    "report": "Reports",
    "vqa": "Questions",
    "synthesis": "Drawn radiographs",
    "text": "Plain text",
}


def gather(run: Path) -> Path:
    """Merge every test/results.json below `run` into results.json and write report.html; gives the
    page's path.
    """
    found = tested(run)
    parts = {str(path.parent.parent.relative_to(run)): read_results(path) for path in found}
    figures = [figure for part in parts.values() for figure in part["figures"]]
    made_by: dict[str, Any] = {name: part["made_by"] for name, part in parts.items()}
    steps = [
        json.loads(path.read_text(encoding="utf-8")) | {"step": path.stem}
        for path in sorted((run / ".steps").glob("*.json"))
    ]
    made_by["seconds"] = {step["step"]: step["seconds"] for step in steps}
    made_by["peak_memory_bytes"] = max([step["peak_memory_bytes"] for step in steps] or [0])
    write_json(run / "results.json", {"figures": figures, "made_by": made_by})
    samples = samples_below(run)
    return write_page(
        run / "report.html",
        "report.html.jinja",
        figures=figures,
        tables=_tables(figures),
        per_finding=_per_finding(figures),
        controls=_controls(figures),
        samples=samples,
        curves=_curves(run),
        made_by=made_by,
        published=PUBLISHED,
        titles=TITLES,
        name=run.name,
        findings_in=findings_in,
        total=sum(made_by["seconds"].values()),
    )


def tested(run: Path) -> list[Path]:
    """Every test/results.json below a run, in order."""
    found = sorted(path for path in run.rglob("results.json") if path.parent.name == "test")
    if not found:
        raise UserError(
            f"{run}: no test/results.json below it; run `mavilt test` with metric callbacks first"
        )
    return found


def samples_below(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples of every test below a run by task, their pictures as data."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for folder in (path.parent for path in tested(run)):
        if (folder / "samples.json").exists():
            for task, rows in json.loads(
                (folder / "samples.json").read_text(encoding="utf-8")
            ).items():
                samples.setdefault(task, []).extend(_inline(row, folder) for row in rows)
    return samples


def write_page(page: Path, template: str, **content: Any) -> Path:
    """A page of one of the templates here, whole or not at all."""
    part = page.with_name(page.name + ".part")
    part.write_text(_template(template).render(**content), encoding="utf-8")
    os.replace(part, page)
    return page


def _template(name: str) -> Any:
    environment = Environment(
        loader=PackageLoader("mavilt_pl.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["claims"] = _claims
    return environment.get_template(name)


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return (
        f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2g}"
        if 0 < abs(value) < 0.01
        else f"{value:.3f}"
    )


def _inline(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Pictures as data, so that the page is one file."""
    out = dict(row)
    for key, value in row.items():
        if isinstance(value, str) and value.startswith("pictures/") and value.endswith(".png"):
            out[key] = (
                "data:image/png;base64," + base64.b64encode((folder / value).read_bytes()).decode()
            )
    return out


def _claims(row: dict[str, Any]) -> list[tuple[str, str]]:
    """What a generated report got right, missed and invented, against the known labels."""
    said = findings_in(row["generated"])
    out = []
    for finding, label in row["labels"].items():
        claimed = said.get(finding) == "present"
        if label == "present":
            out.append((finding, "right" if claimed else "missed"))
        elif label == "absent" and claimed:
            out.append((finding, "invented"))
    return out


def _tables(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Headline figures by task: rows are metrics, columns are sources."""
    tables = []
    for task in TASKS:
        mine = [f for f in figures if f["task"] == task and f["control"] is None]
        sources = sorted({f["source"] for f in mine})
        rows = []
        for metric in HEADLINES[task]:
            cells = [
                next((f for f in mine if f["metric"] == metric and f["source"] == s), None)
                for s in sources
            ]
            if any(cells):
                rows.append(
                    {
                        "metric": metric,
                        "cells": cells,
                        "protocol": next(c for c in cells if c)["protocol"],
                    }
                )
        if rows:
            tables.append({"task": task, "sources": sources, "rows": rows})
    return tables


def _per_finding(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One table a source: what becomes of each finding along the chain."""
    columns = {
        "findings_f1": "report F1",
        "auroc": "question AUROC",
        "drawn_auroc": "drawn AUROC",
        "original_auroc": "original AUROC",
        "reconstructed_auroc": "reconstructed AUROC",
    }
    tables = []
    for source in sorted({f["source"] for f in figures}):
        values = {
            (f["metric"].split("/")[0], f["metric"].split("/")[1]): f
            for f in figures
            if f["source"] == source and f["control"] is None and "/" in f["metric"]
        }
        names = sorted({name for column, name in values if column in columns})
        used = [column for column in columns if any((column, name) in values for name in names)]
        if names:
            tables.append(
                {
                    "source": source,
                    "columns": [columns[c] for c in used],
                    "rows": [(n, [values.get((c, n)) for c in used]) for n in names],
                }
            )
    return tables


def _controls(figures: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each control figure beside the real one."""
    real = {(f["task"], f["source"], f["metric"]): f for f in figures if f["control"] is None}
    wanted = {
        "auroc_macro",
        "accuracy",
        "open_exact_match",
        "open_f1",
        "findings_f1_macro",
        "findings_f1_micro",
        "bleu_4",
    }
    return [
        (real[f["task"], f["source"], f["metric"]], f)
        for f in figures
        if f["control"] is not None
        and f["metric"] in wanted
        and (f["task"], f["source"], f["metric"]) in real
    ]


def _curves(run: Path) -> list[dict[str, Any]]:
    """Training and validation curves from TensorBoard's files, as points of small line charts."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    charts = []
    for folder in sorted({path.parent for path in run.rglob("events.out.tfevents.*")}):
        reader = EventAccumulator(str(folder), size_guidance={SCALARS: 2000})
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            keep = tag == "train/loss" or (
                tag.startswith("val/")
                and tag.rsplit("/", 1)[-1] in ("loss", "psnr", "auroc", "text_perplexity")
            )
            points = [(event.step, event.value) for event in reader.Scalars(tag)] if keep else []
            if len(points) > 1:
                charts.append(
                    {
                        "module": str(folder.parent.relative_to(run)),
                        "tag": tag,
                        "line": _line(points),
                        "last": points[-1],
                        "first": points[0],
                    }
                )
    return charts


def _line(points: list[tuple[int, float]], width: float = 220, height: float = 60) -> str:
    steps, values = zip(*points)
    low, high = min(values), max(values)
    across, up = (max(steps) - min(steps)) or 1, (high - low) or 1
    return " ".join(
        f"{(s - min(steps)) / across * width:.1f},{height - (v - low) / up * height:.1f}"
        for s, v in points
    )
