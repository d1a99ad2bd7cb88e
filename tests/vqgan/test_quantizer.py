"""The quantiser against vector-quantize-pytorch, and against itself on two processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from mavilt_pl.vqgan.quantizer import Quantizer, rotate


def test_rotation_against_the_library() -> None:
    torch.manual_seed(0)
    z, code, gradient = (torch.randn(3, 5, 8) for _ in range(3))
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    first, second = rotate(ours, code), rotate_to(theirs, code)
    torch.testing.assert_close(first, code)
    (first * gradient).sum().backward()
    (second * gradient).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("cosine", [True, False])
def test_thirty_steps_against_the_library(cosine: bool) -> None:
    """Same codes, quantised latents, gradients and codebook as vector-quantize-pytorch (draws of
    revived codes aside).
    """
    torch.manual_seed(0)
    ours = Quantizer(
        codebook_size=12,
        latent_dim=6,
        code_dim=4,
        cosine=cosine,
        decay=0.8,
        dead_code_threshold=0,
        kmeans=False,
    )
    theirs = VectorQuantize(
        dim=6,
        codebook_size=12,
        codebook_dim=4,
        use_cosine_sim=cosine,
        decay=0.8,
        eps=1e-9,
        accept_image_fmap=True,
    )
    for name in ("project_in", "project_out"):
        getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
    theirs._codebook.embed.copy_(ours.codebook[None])
    theirs._codebook.embed_avg.copy_(ours.codebook[None])
    for _ in range(30):
        latents = torch.randn(2, 6, 3, 3) + 0.5
        mine, other = latents.clone().requires_grad_(), latents.clone().requires_grad_()
        quantised, codes, term = ours(mine)
        expected, indices, loss = theirs(other)
        assert torch.equal(codes, indices.flatten(1))
        torch.testing.assert_close(quantised, expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(term, 0.25 * loss.sum(), atol=1e-5, rtol=1e-3)
        (quantised.square().sum() + term).backward()
        (expected.square().sum() + 0.25 * loss.sum()).backward()
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-3, rtol=1e-3)
    seen = ours.counts > 0.01
    torch.testing.assert_close(ours.codebook[seen], theirs.codebook[seen], atol=1e-3, rtol=1e-3)


def test_codes_decode_to_what_was_quantised() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(codebook_size=16, latent_dim=8, code_dim=4)
    quantizer(torch.randn(4, 8, 4, 4))
    quantizer.eval()
    quantised, codes, _ = quantizer(torch.randn(2, 8, 4, 4))
    torch.testing.assert_close(quantizer.lookup(codes.view(2, 4, 4)), quantised)


def test_dead_codes_revive() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(codebook_size=32, latent_dim=4, code_dim=4, kmeans=False, cosine=False)
    quantizer.codebook += 100  # every code far away from every latent
    for _ in range(20):
        quantizer(torch.randn(16, 4, 4, 4))
    used = quantizer.eval()(torch.randn(64, 4, 4, 4))[1].unique().numel()
    assert used > 16


def test_clustering_starts_the_codes_on_the_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(6, 4), dim=-1)
    latents = centres[torch.randint(6, (8, 5, 5))] + 0.01 * torch.randn(8, 5, 5, 4)
    quantizer = Quantizer(codebook_size=24, latent_dim=4, code_dim=4)
    quantizer(latents.permute(0, 3, 1, 2))
    assert (centres @ quantizer.codebook.T).amax(1).min() > 0.999


def test_a_resumed_quantizer_draws_as_one_that_never_stopped() -> None:
    torch.manual_seed(0)
    whole = Quantizer(codebook_size=32, latent_dim=4, code_dim=4)
    batches = torch.randn(8, 4, 4, 4, 4)
    for batch in batches[:4]:
        whole(batch)
    resumed = Quantizer(codebook_size=32, latent_dim=4, code_dim=4)
    resumed.load_state_dict(whole.state_dict())
    for batch in batches[4:]:
        torch.manual_seed(1)
        whole(batch)
        torch.manual_seed(2)
        resumed(batch)
    assert torch.equal(whole.codebook, resumed.codebook)


def _train(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quantizer = Quantizer(
        codebook_size=32, latent_dim=6, code_dim=4
    )  # built before the processes know each other
    latents = torch.randn(20, 8, 6, 4, 4)
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size
        )
        torch.manual_seed(rank)  # the processes' random states are of no account
    for batch in latents:
        quantizer(batch[rank::size])
    torch.save(quantizer.state_dict(), f"{folder}/{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_move_the_codes_as_one_does(tmp_path: Path) -> None:
    """Clustering, moving averages and revived codes of 20 batches, dealt out to two processes."""
    _train(0, 1, str(tmp_path))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_train, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert torch.equal(first["codebook"], second["codebook"])
    for name in ("codebook", "counts", "sums"):
        torch.testing.assert_close(first[name], one[name], atol=1e-5, rtol=1e-5)
