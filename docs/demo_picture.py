"""Draw docs/demo.png, the picture of the README, from a finished demo.

    python docs/demo_picture.py runs/demo docs/demo.png

Columns are the first normal test study, and the first that shows each of five findings. Nothing
is chosen by its result.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from mavilt_pl import MAViLT
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.pixels import to_float, to_uint8

FINDINGS = ("cardiomegaly", "pleural effusion", "pneumothorax", "lung lesion", "support devices")
ROWS = ("radiograph", "the same,\nfrom 64 codes", "drawn from its\nreport alone")
LINE = 27  # characters


def first_studies(corpus: Corpus) -> dict[str, int]:
    """A row of the corpus for each column's title."""
    found: dict[str, int] = {}
    for row in corpus.rows("test"):
        labels = corpus[row].labels
        present = [name for name in FINDINGS if labels.get(name) == "present"]
        if labels.get("no finding") == "present":
            present = ["normal"]
        for name in present:
            # A study with several findings stands for the first that has no column yet.
            if name not in found:
                found[name] = int(row)
                break
    return {title: found[title] for title in ("normal", *FINDINGS)}


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished demo")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    corpus = Corpus(args.run / "corpora" / "mimic")
    model = MAViLT.from_runs(args.run / "stage2", args.run / "vqgan", device="cpu")

    columns = first_studies(corpus)
    studies = [corpus[row] for row in columns.values()]
    pixels = np.stack([corpus.pixels(corpus.image_rows(row)[0][0]) for row in columns.values()])
    with torch.inference_mode():
        codes_BN = model.vqgan.encode(to_float(pixels)[:, None])
        reconstructed = to_uint8(model.vqgan.decode(codes_BN))
        written = model.generator.generate_reports(codes_BN)
    drawn = model.draw([study.findings for study in studies])
    rows = (pixels, reconstructed, drawn)

    figure, axes = plt.subplots(
        4, len(columns), figsize=(15, 9.9), height_ratios=(1, 1, 1, 0.98), dpi=110
    )
    for column, title in enumerate(columns):
        axes[0, column].set_title(title, fontsize=15)
        for row, images in enumerate(rows):
            axes[row, column].imshow(images[column], cmap="gray", vmin=0, vmax=255)
        text = "\n".join(textwrap.wrap(written[column], LINE))
        axes[3, column].text(0, 1, text, va="top", fontsize=11, linespacing=1.2)
    for row, label in enumerate((*ROWS, "report written\nfrom the radiograph")):
        axes[row, 0].set_ylabel(label, fontsize=15, labelpad=12)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.subplots_adjust(0.06, 0, 0.998, 0.965, wspace=0.03, hspace=0.03)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
