"""How often does a gap between subgroups exceed what chance allows, where there is no difference?

    python benchmarks/subgroups.py        # 5 of 100 are promised

Answers of 150 patients are simulated, one or two studies each, and the groups drawn at random.
"""

from __future__ import annotations

import numpy as np

from mavilt_pl.evaluation import subgroups

TESTS, PATIENTS = 200, 150
TOPICS = ["edema", "fracture"]
METRICS = ("accuracy", "auroc_macro", "auprc_macro")


def answers(random: np.random.Generator, groups: int) -> list[dict]:
    """Answers that are as good in every group."""
    records = []
    for patient in range(PATIENTS):
        group = f"group {random.integers(groups)}"
        for view in ("PA", "AP")[: random.integers(1, 3)]:
            for topic in TOPICS:
                truth = random.random() < 0.4
                yes = 1 / (1 + np.exp(-(1.5 * (truth - 0.5) + random.normal())))
                records.append(
                    {
                        **{"task": "vqa", "source": "here", "patient": str(patient)},
                        "attributes": {"scanner": group, "view": view},
                        **{"topic": topic, "reference": "yes" if truth else "no"},
                        **{"candidates": ["yes", "no"], "probabilities": [yes, 1 - yes]},
                    }
                )
    return records


def main() -> None:
    # Figures of the groups are not needed, only their gaps.
    subgroups.score = lambda *_: []
    for groups in (2, 5):
        random, exceeded = np.random.default_rng(groups), {}
        for _ in range(TESTS):
            for gap in subgroups.subgroups(answers(random, groups), TOPICS)["gaps"]:
                if gap["metric"] in METRICS:
                    name = gap["attribute"], gap["metric"]
                    exceeded[name] = exceeded.get(name, 0) + (gap["gap"] > gap["chance"])
        for (attribute, metric), count in exceeded.items():
            number = groups if attribute == "scanner" else 2
            print(f"{number} groups, {metric}: {count / TESTS:.1%} of {TESTS} tests")


if __name__ == "__main__":
    main()
