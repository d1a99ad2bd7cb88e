"""Kill -9 at random moments, go on with the same command, and compare with a run that nobody
killed.

python benchmarks/kill.py --kills 45                          # prepare, VQ-GAN, tokenize, Stage 1,
Stage 2, in turn python benchmarks/kill.py --kills 3 --verbs prepare,vqgan     # of these only

Two rounds are killed at random moments, every third within the first save after one. Everything is
tiny and on a CPU; shards and pieces are small, and trainings save at every step, Stage 2 in the
background. What must be equal: of trainings the weights and optimizers, bit for bit, and the steps
of their TensorBoard history; of corpora and token caches every file, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = "--data.findings=[cardiomegaly,pleural effusion,edema]"
SHARD, TOKEN_SHARD = 48, 48  # studies and images; thousands otherwise
STEPS = 8


def child(words: list[str]) -> int:
    """One `mavilt` command with small shards."""
    from mavilt_pl.cli import main
    from mavilt_pl.data import prepare
    from mavilt_pl.vqgan import encode_corpus

    prepare.SHARD, encode_corpus.SHARD = SHARD, TOKEN_SHARD
    return main(words)


def commands(base: Path) -> dict[str, list[str]]:
    """Verb by verb what is killed; OUT stands for the folder that it writes. `base` holds what each
    reads.
    """
    quiet = [
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.accelerator=cpu",
    ]

    def fit(config: str, *more: str) -> list[str]:
        return [
            "fit",
            f"--config=demo/{config}.yaml",
            *quiet,
            f"--data.corpora=[{base}/corpus]",
            "--data.batch_size=4",
            "--data.weights=null",
            "--trainer.log_every_n_steps=1",
            "--trainer.limit_val_batches=1",
            "--trainer.val_check_interval=3",
            f"--trainer.max_steps={STEPS}",
            "--trainer.default_root_dir=OUT",
            "--checkpoint_every=1",
            "--ckpt_path=last",
            *more,
        ]

    language = [
        f"--data.tokens=[{base}/tokens]",
        f"--model.init_args.tokens={base}/tokens",
        DATA,
        "--data.eval_batch_size=4",
        f"--model.init_args.backbone={base}/backbone/backbone",
        "--model.init_args.regularization.condition_dropout=0.5",
    ]
    vqgan = {
        "autoencoder": "{image_size: 32, channels: 8, channel_multipliers: [1, 2], "
        "num_res_blocks: 1, attention_resolutions: [], latent_dim: 8}",
        "quantizer": "{codebook_size: 32, code_dim: 4}",
        "lambda_feat": 0,
        "lambda_finding": 0,
        "finding_weight": 0,
        "clinical_input": "false",
        "gan_start": 3,
        "discriminator": "{channels: 8, layers: 1}",
    }
    small = [
        f"--model.init_args.{key}={value}"
        for key, value in {"width": 32, "layers": 2, "heads": 2}.items()
    ]
    return {
        "phantom": [
            "phantom",
            "mimic",
            str(base / "raw"),
            "--studies",
            "220",
            "--validate",
            "8",
            "--test",
            "8",
            "--size",
            "48",
            "--workers",
            "1",
        ],
        "prepare": [
            "prepare",
            "mimic-cxr-jpg",
            str(base / "raw"),
            "--out",
            "OUT",
            "--size",
            "32",
            "--workers",
            "1",
        ],
        "vqgan": fit(
            "vqgan",
            "--trainer.callbacks=[]",
            *(f"--model.init_args.{key}={value}" for key, value in vqgan.items()),
            "--data.augment=true",
            "--data.num_workers=1",
        ),
        "tokenize": [
            "tokenize",
            "--corpus",
            str(base / "corpus"),
            "--tokenizer",
            str(base / "vqgan"),
            "--out",
            "OUT",
            "--device",
            "cpu",
            "--batch-size",
            "1",
        ],
        "backbone": fit("backbone", *small),
        "stage1": fit("stage1", *language),
        "stage2": fit(
            "stage2",
            *language,
            "--data.questions_per_study=2",
            f"--model.init_args.init_from={base}/stage1/checkpoints/last.ckpt",
            "--checkpoint_async=true",
        ),
    }


MADE_AT = {
    "prepare": "corpus",
    "tokenize": "tokens",
}  # where the never-killed run lies, if not under the verb's name
ORDER = ("prepare", "vqgan", "tokenize", "stage1", "stage2")


def started(words: list[str], out: Path, log: Path) -> subprocess.Popen[bytes]:
    words = [word.replace("OUT", str(out)) for word in words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, __file__, "child", *words],
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def ended(words: list[str], out: Path, log: Path) -> float:
    """Run a command to its end; the seconds it took. Its words are shown where it fails."""
    start = time.monotonic()
    if started(words, out, log).wait():
        raise SystemExit(f"{out.name}: the command failed\n{log.read_text()[-4000:]}")
    return time.monotonic() - start


def saving(out: Path) -> bool:
    """Whether something is being written, or was when the process died."""
    for path in out.rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # it has got its name meanwhile
            if path.stat().st_size:
                return True
    return False


def killed(running: subprocess.Popen[bytes], out: Path, moment: float, in_save: bool) -> bool:
    """Kill the process group after this many seconds, within the next save if asked; whether it had
    not ended before.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(moment)
    while in_save and running.poll() is None and not saving(out):
        pass
    if running.poll() is not None:
        return False
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    return True


def differences(one: Path, other: Path) -> list[str]:
    """What is not as in the run that nobody killed."""
    if not (one / "checkpoints").exists():
        names = [
            sorted(
                str(p.relative_to(o)) for p in o.rglob("*") if p.is_file() and p.suffix != ".lock"
            )
            for o in (one, other)
        ]
        if names[0] != names[1]:
            return [f"files {names[0]} and {names[1]}"]
        return [
            name for name in names[0] if not filecmp.cmp(one / name, other / name, shallow=False)
        ]
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first, second = (
        torch.load(o / "checkpoints/last.ckpt", weights_only=True) for o in (one, other)
    )
    found = [
        name
        for name, value in first["state_dict"].items()
        if not torch.equal(value, second["state_dict"][name])
    ]
    for mine, theirs in zip(first["optimizer_states"], second["optimizer_states"], strict=True):
        for key, state in mine["state"].items():
            found += [
                f"optimizer {key}/{name}"
                for name, value in state.items()
                if not torch.equal(
                    torch.as_tensor(value), torch.as_tensor(theirs["state"][key][name])
                )
            ]
    histories = []
    for folder in (one, other):
        events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=False)
        events.Reload()
        histories.append(
            {tag: sorted(e.step for e in events.Scalars(tag)) for tag in events.Tags()["scalars"]}
        )
    return found + ([] if histories[0] == histories[1] else ["the steps of the history"])


def campaign(kills: int, seed: int, order: list[str], folder: Path) -> int:
    """Prints one line a kill and a table; the number of runs that differ."""
    base = folder / "whole"
    base.mkdir()
    words, seconds = commands(base), {}
    needed = [*words][: 1 + max([*words].index(verb) for verb in order)]
    for verb, command in words.items():
        if verb not in needed:
            break
        seconds[verb] = ended(command, base / MADE_AT.get(verb, verb), folder / f"{verb}.log")
        print(f"{verb}: {seconds[verb]:.1f} s, never killed", flush=True)
    draw, tally = random.Random(seed), {verb: [0, 0, 0, 0] for verb in order}
    for number in range(kills):
        verb = order[number % len(order)]
        out, log = folder / f"{number}-{verb}", folder / f"{number}-{verb}.log"
        moment = (
            draw.uniform(0.35, 1.0) * seconds[verb]
        )  # before a third of it nothing has begun: imports
        died = killed(
            started(words[verb], out, log), out, moment, in_save=number // len(order) % 3 == 2
        )
        within = saving(out)
        ended(words[verb], out, log)
        bad = differences(base / MADE_AT.get(verb, verb), out)
        for column, value in enumerate((died, within, not bad, bool(bad))):
            tally[verb][column] += value
        print(
            f"{number + 1}/{kills} {verb}, {'killed' if died else 'ended'} at {moment:.1f} "
            f"s{', within a save' * within}: {'equal' if not bad else bad[:3]}",
            flush=True,
        )
        if not bad:
            shutil.rmtree(out)
    print(
        "\n| | killed | of these within a save | equal | different |\n| --- | --- | --- | --- | "
        "--- |"
    )
    for verb, row in tally.items():
        print(f"| {verb} | {' | '.join(map(str, row))} |")
    total = [sum(column) for column in zip(*tally.values())]
    print(f"| all | {' | '.join(map(str, total))} |")
    return total[3]


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        sys.exit(child(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=45)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", default=",".join(ORDER))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(
            1 if campaign(given.kills, given.seed, given.verbs.split(","), Path(scratch)) else 0
        )
