"""What the pages show: the headline metrics of each task, and published figures."""

from __future__ import annotations

# Encoders that sets of images are compared under, and the figures of each.
ENCODERS = ("cxr", "inception", "rad_dino")
SET_FIGURES = (
    *("fid_{}", "fid_{}_floor", "kid_{}", "kid_{}_floor", "precision_{}", "recall_{}"),
    *("density_{}", "coverage_{}", "near_training_{}"),
)
# The order of the rows. A new metric appears on no page before it is listed here.
HEADLINES = {
    "encoder": ("classifier_auroc_macro",),
    "tokenizer": (
        "psnr",
        "ssim",
        "gradient_psnr",
        "lpips",
        "codebook_used",
        "ood_share",
        "original_auroc_macro",
        "reconstructed_auroc_macro",
        "fid_cxr",
        "kid_cxr",
    ),
    "report": (
        "findings_f1_macro",
        "findings_f1_macro_chance",
        "findings_f1_micro",
        "findings_f1_micro_chance",
        "findings_f1_macro_uncertain",
        "findings_f1_macro_5",
        "bleu_1",
        "bleu_4",
        "rouge_l",
        "meteor",
        "bleu_4_coco",
        "rouge_l_coco",
        "cider",
        "meteor_coco",
        "side_f1",
        "zone_f1",
    ),
    "vqa": (
        "auroc_macro",
        "auprc_macro",
        "balanced_accuracy_macro",
        "accuracy",
        "ece",
        "open_exact_match",
        "open_f1",
    ),
    "synthesis": (
        "drawn_auroc_macro",
        "original_auroc_macro",
        *(figure.format(encoder) for encoder in ENCODERS for figure in SET_FIGURES),
        "missing_view_drawn_auroc_macro",
        "missing_view_original_auroc_macro",
        "missing_view_fid_cxr",
        "missing_view_fid_inception",
    ),
    "text": ("perplexity", "perplexity_before", "perplexity_ratio"),
}
TITLES = {
    "encoder": "Classifier of findings",
    "tokenizer": "Tokenizer",
    "report": "Reports",
    "vqa": "Questions",
    "synthesis": "Generated radiographs",
    "text": "Plain text",
}
# Controls and the ceiling, and the headings of their columns.
REFERENCE = "reference_report"
CONTROLS = {
    "shuffled_images": "images shuffled",
    "constant_report": "one report for all",
    "retrieved_report": "nearest training report",
    "majority_answer": "most frequent answer",
    REFERENCE: "the references",
}
# Metrics of single findings, `<metric>/<finding>`, and the heading of their column.
FINDING_COLUMNS = {
    "classifier_auroc": "classifier AUROC",
    "findings_f1": "report F1",
    "auroc": "question AUROC",
    "auprc": "question AUPRC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "drawn_auroc": "generated AUROC",
    "original_auroc": "original AUROC",
    "reconstructed_auroc": "reconstructed AUROC",
}
# Metrics that the table of the negative control shows.
# Figures that a model could reach without looking at the image; the others need no control.
CONTROLLED = {
    "auroc_macro",
    "accuracy",
    "open_exact_match",
    "open_f1",
    "findings_f1_macro",
    "findings_f1_micro",
    "bleu_4",
    "cider",
    "side_f1",
    "zone_f1",
    "balanced_accuracy_macro",
    "auprc_macro",
}
# System, data and protocol, reported figures. Protocols differ, so none is comparable with ours.
PUBLISHED = (
    (
        "MAViLT (arXiv 2502.05926)",
        "report generation, ablation; its tables were not at hand: protocol unknown to us",
        "BLEU 44.9 with joint, 48.6 with two-stage training",
    ),
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
        "findings, R2Gen split, MIMIC, n = 3,858",
        "BLEU-1 .393, BLEU-4 .127, METEOR .154, ROUGE-L .287",
    ),
    (
        "CvT2DistilGPT2",
        "findings, R2Gen split, IU, n = 590",
        "BLEU-1 .473, BLEU-4 .175, METEOR .200, ROUGE-L .376",
    ),
    (
        "CXRMate-2 (arXiv 2604.18967)",
        "findings, MIMIC, n = 1,624",
        "GREEN .466, RadGraph-XL .403, RaTEScore .676, CheXbert .483, BLEU-4 .245, ROUGE-L .421",
    ),
)
