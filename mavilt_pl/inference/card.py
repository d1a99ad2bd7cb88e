"""The model card of an exported folder, from what the training recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mavilt_pl import __version__
from mavilt_pl.evaluation.figure_tables import headline_tables
from mavilt_pl.inference.mavilt import MAViLT

# Not a module of this package: importing it loads a model.
EXAMPLE = Path(__file__).with_name("example.py.jinja")


def write_card(
    model: MAViLT,
    checkpoint: Mapping[str, Any],
    name: str,
    checksums: Mapping[str, str],
    figures: Sequence[Mapping[str, Any]],
    license_id: str,
    is_whole: bool,
) -> str:
    """The card as Markdown, with the metadata that Hugging Face's hub reads.

    Args:
        model: that is exported.
        checkpoint: of its training.
        name: of the model.
        checksums: SHA-256 of each file of weights.
        figures: as in results.json.
        license_id: as Hugging Face's cards name licences.
        is_whole: whether the base model's weights are in the folder.
    """
    generator = model.generator
    settings = checkpoint["hyper_parameters"]
    # Markdown, not HTML: nothing is escaped, and no text of a dataset is on a card.
    templates = Environment(
        loader=PackageLoader("mavilt_pl.inference", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("card.md.jinja").render(
        name=name,
        is_whole=is_whole,
        license=license_id,
        instructed=generator.prompts.instructed,
        stage=settings["_class_path"].rpartition(".")[2],
        version=__version__,
        steps=f"{checkpoint['global_step']:,}",
        # A path of the training machine says nothing elsewhere.
        backbone=Path(settings["backbone"]).name,
        size=model.vqgan.autoencoder.image_size,
        fit=model.encoder.fit,
        codes=generator.model.vocabulary.codes_per_image,
        codebook_size=generator.model.vocabulary.codebook_size,
        checkpoint=model.sha256,
        tokenizer=checkpoint["visual_tokenizer"],
        data=model.loaded.training_data,
        has_reference=bool(model.loaded.ood_references),
        checksums=checksums,
        tables=headline_tables(figures),
        example=EXAMPLE.read_text(encoding="utf-8").strip(),
    )
