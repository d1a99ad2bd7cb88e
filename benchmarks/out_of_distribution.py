"""How well images unlike the training images are found, and how often like ones are flagged.

    cd runs/demo
    python …/benchmarks/out_of_distribution.py --tokenizer vqgan --corpora corpora/* \\
        --tokens tokens/* --unlike nih/images

Held-out images are the test images of the corpora; AUROC compares them with the others by their
score.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from mavilt_pl.checkpoint import resolve_checkpoint
from mavilt_pl.data.corpus import Corpus
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.inference.study_encoder import StudyEncoder
from mavilt_pl.vqgan.loading import load_tokenizer

MOST = 400  # images of each kind
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": lambda pixels: 255 - pixels,
    "upside down": lambda pixels: pixels[::-1].copy(),
    "turned by 90°": lambda pixels: np.rot90(pixels).copy(),
    "mirrored": lambda pixels: pixels[:, ::-1].copy(),
    "blurred, σ 2 pixels": lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 2),
}


def photographs(size: int) -> list[np.ndarray]:
    """Crops of scikit-learn's two photographs."""
    rng, crops = np.random.default_rng(0), []
    for picture in load_sample_images().images:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        for _ in range(50):
            side = int(rng.integers(100, 400))
            top, left = (int(rng.integers(0, length - side)) for length in grey.shape)
            crop = grey[top : top + side, left : left + side]
            crops.append(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA))
    return crops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="run of the VQ-GAN")
    parser.add_argument("--corpora", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="of the corpora")
    parser.add_argument("--unlike", type=Path, nargs="*", default=[], help="folders of images")
    args = parser.parse_args()
    torch.set_num_threads(2)
    references = []
    for path in args.tokens:
        references += TokenCache(path).ood_references()
    tokenizer = load_tokenizer(resolve_checkpoint(args.tokenizer))
    encode = StudyEncoder(tokenizer, references, multi_view=False, fit="pad")

    def scores(images: list) -> np.ndarray:
        return np.array([study.ood_score for study in encode(images)])

    print("| images | n | flagged (95 %) | median score | AUROC |\n| --- | --- | --- | --- | --- |")

    def line(name: str, found: np.ndarray, auroc: str) -> None:
        flagged = int((found > 1).sum())
        low, high = binomtest(flagged, len(found)).proportion_ci(method="wilson")
        share = f"{flagged / len(found):.1%} ({low:.1%} to {high:.1%})"
        print(f"| {name} | {len(found)} | {share} | {np.median(found):.2f} | {auroc} |", flush=True)

    held_out, like = [], []
    for path in args.corpora:
        corpus = Corpus(path)
        rows = [corpus.image_rows(int(row))[0][0] for row in corpus.rows("test")][:MOST]
        pixels = [corpus.pixels(row) for row in rows]
        like.append(scores(pixels))
        held_out += pixels
        line(f"held-out, {corpus.name}", like[-1], "–")
    known = np.concatenate(like)
    unlike = {name: [change(one) for one in held_out] for name, change in CHANGES.items()}
    unlike["photographs"] = photographs(len(held_out[0]))
    rng = np.random.default_rng(0)
    unlike["noise"] = list(rng.integers(0, 256, (100, *held_out[0].shape)).astype(np.uint8))
    for folder in args.unlike:
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
        unlike[str(folder)] = files[:MOST]
    for name, images in unlike.items():
        found = scores(images)
        truth = np.r_[np.zeros(len(known)), np.ones(len(found))]
        line(name, found, f"{roc_auc_score(truth, np.r_[known, found]):.4f}")


if __name__ == "__main__":
    main()
