"""Streaming, the batched clip and one explicitly masked attention are the same function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from services.score.adapters import listen
from services.score.attention import KeysValues
from services.score.cache import Context, Handed, Tape, Window
from services.score.config import AnchorConfig
from services.score.model import Block, Dit, Given
from services.score.passes import Scene, clip, input_channels
from services.score.rope import shift, table, turn
from tests.score import small

LEVEL = 0.75


def stream(dit: Dit, scene: Scene, clean: Tensor, noisy: Tensor, audio: list[KeysValues]) -> Tensor:
    """Chunk by chunk through the preallocated window: [K, C, F, h, w]."""
    passes, config = small.passes(dit), dit.config
    layers = [Handed() for _ in range(config.layers)]
    passes.anchor(scene, dit.embed_time(torch.zeros(1)), layers)
    window = Window(config, rows=1, heads=config.heads, device=small.CPU, dtype=torch.float32)
    window.put_anchor(0, Tape.of(layers))
    context = Context(config, window)
    clean_times = dit.embed_time(torch.tensor([config.context.level]))
    noisy_times = dit.embed_time(torch.tensor([LEVEL]))
    predictions = []
    for k in range(noisy.shape[1]):
        heard = [KeysValues(kv.k[k : k + 1], kv.v[k : k + 1]) for kv in audio]
        window.put_context(0, context.newest_first(), passes.places.moves)
        parts = window.parts(1, context.filled)
        predictions.append(passes.denoise(noisy[:, k], scene, noisy_times, heard, parts))
        passes.context(clean[:, k], scene, clean_times, heard, window.parts(1, 0))
        context.remember(window, 0)
    return torch.cat(predictions)


def masked(dit: Dit, scene: Scene, clean: Tensor, noisy: Tensor, audio: list[KeysValues]) -> Tensor:
    """All copies side by side in one sequence under one mask, written out by hand."""
    config, chunks = dit.config, noisy.shape[1]
    frames, n, where = config.stream.latents_per_chunk, config.frame_tokens, config.positions
    # (role, chunk), first position, frames, level and latents of every copy.
    copies = [(("anchor", -1), where.anchor, 1, 0.0, scene.anchor)]
    copies += [(("clean", k), where.context, frames, 0.0, clean[:, k]) for k in range(chunks)]
    copies += [(("noisy", k), where.own, frames, LEVEL, noisy[:, k]) for k in range(chunks)]
    x, rope, times, roles = [], [], [], []
    rows, columns = config.grid
    for role, first, length, level, source in copies:
        channels = input_channels(
            config.anchor, source, scene.anchor, on_anchor=role[0] == "anchor"
        )
        x.append(dit.patch_embedding(channels).flatten(2).transpose(1, 2))
        place = range(first, first + length)
        rope.append(table(config.head_dim, frames=place, rows=range(rows), columns=range(columns)))
        times += [dit.embed_time(torch.tensor([level])).blocks] * (length * n)
        roles += [role] * (length * n)
    mask = torch.tensor([[visible(query, key) for key in roles] for query in roles])
    h, silence = torch.cat(x, 1), dit.hear_nothing()
    assert silence is not None
    for block, given, spoken, silent in zip(dit.layers(), scene.given, audio, silence, strict=True):
        modulation = block.modulation[:, :, None] + torch.stack(times, 2)  # [1, 6, L, M]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
        y = normed(h) * (1 + scale1) + shift1
        h = h + gate1 * self_attention(block, y, torch.cat(rope, 1), mask)
        h = h + cross_attention(block, h, given, [silent, *split(spoken), *split(spoken)], scene)
        h = h + gate2 * block.ffn(normed(h) * (1 + scale2) + shift2)
    out = dit.head(h[:, -chunks * frames * n :], dit.embed_time(torch.tensor([LEVEL])).head)
    out = out.view(chunks, frames, rows, columns, 2, 2, config.out_channels)
    shape = (chunks, config.out_channels, frames, 2 * rows, 2 * columns)
    pixels: Tensor = out.permute(0, 6, 1, 2, 4, 3, 5).reshape(shape)
    return pixels


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def split(kv: KeysValues) -> list[KeysValues]:
    return [KeysValues(kv.k[k : k + 1], kv.v[k : k + 1]) for k in range(len(kv.k))]


def self_attention(block: Block, y: Tensor, rope: Tensor, mask: Tensor) -> Tensor:
    attn, shape = block.self_attn, (1, y.shape[1], block.self_attn.heads, -1)
    q = turn(attn.norm_q(attn.q(y)).view(shape), rope).transpose(1, 2)
    k = turn(attn.norm_k(attn.k(y)).view(shape), rope).transpose(1, 2)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    values = attn.v(y).view(shape).transpose(1, 2)
    out: Tensor = attn.o((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
    return out


def cross_attention(
    block: Block, h: Tensor, given: Given, spoken: list[KeysValues], scene: Scene
) -> Tensor:
    """`spoken` per copy: the anchor's silence, then every chunk's speech twice."""
    cross = block.cross_attn
    q = cross.norm_q(cross.q(block.norm3(h))).view(1, h.shape[1], cross.heads, -1)
    answer = torch.zeros_like(q)
    for source in (given.text, given.image):
        assert source is not None
        weights = torch.einsum("blhd,bmhd->bhlm", q, source.k) / q.shape[-1] ** 0.5
        answer = answer + torch.einsum("bhlm,bmhd->blhd", weights.softmax(-1), source.v)
    assert scene.faces is not None
    speakers, n = scene.faces.shape[1:]
    parts = []
    for kv in spoken:
        audio = KeysValues(*(x.expand(1, speakers, *x.shape[2:]) for x in kv))
        piece, q = q[:, : audio.k.shape[2] * n], q[:, audio.k.shape[2] * n :]
        parts.append(listen(cross.kernel, piece, audio, scene.faces))
    out: Tensor = cross.o((answer + torch.cat(parts, 1)).flatten(2))
    return out


def visible(query: tuple[str, int], key: tuple[str, int]) -> bool:
    (asks, k), (seen, j) = query, key
    if seen == "anchor":
        return True
    if asks == "clean":
        return seen == "clean" and j == k
    return asks == "noisy" and ((seen == "clean" and j == k - 1) or (seen == "noisy" and j == k))


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("speakers", [1, 2])
def test_streaming_equals_clip_equals_mask(chunks: int, speakers: int) -> None:
    config = small.config(anchor=AnchorConfig(mask_channels=2, fill="anchor"))
    dit = small.model(config)
    with torch.inference_mode():
        scene = small.scene(dit, speakers=speakers)
        clean = small.latents(config, 1, chunks, seed=5)
        noisy = small.latents(config, 1, chunks, seed=6)
        audio = dit.hear(*small.speech(config, chunks, speakers))
        streamed = stream(dit, scene, clean, noisy, audio)
        whole = clip(
            small.passes(dit),
            scene,
            clean=clean,
            noisy=noisy,
            level=torch.tensor([LEVEL]),
            audio=audio,
        )[0]
        explicit = masked(dit, scene, clean, noisy, audio)
    assert streamed.std() > 0.1
    torch.testing.assert_close(whole, streamed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(explicit, streamed, rtol=1e-5, atol=1e-5)


def test_a_chunk_depends_on_the_chunk_before_and_on_nothing_earlier() -> None:
    config = small.config()
    dit = small.model(config)
    with torch.inference_mode():
        scene = small.scene(dit)
        clean, noisy = small.latents(config, 1, 4, seed=5), small.latents(config, 1, 4, seed=6)
        audio = dit.hear(*small.speech(config, 4))
        before = stream(dit, scene, clean, noisy, audio)
        clean[:, 1] += 1
        after = stream(dit, scene, clean, noisy, audio)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, False]


def test_gradients_reach_the_context_unless_told_otherwise() -> None:
    config = small.config()
    dit = small.model(config)
    clean = small.latents(config, 1, 2, seed=5).requires_grad_()
    noisy, level = small.latents(config, 1, 2, seed=6), torch.tensor([LEVEL])
    for context_gradient in (True, False):
        scene = small.scene(dit)
        audio = dit.hear(*small.speech(config, 2))
        out = clip(
            small.passes(dit),
            scene,
            clean=clean,
            noisy=noisy,
            level=level,
            audio=audio,
            context_gradient=context_gradient,
        )
        clean.grad = None
        torch.autograd.backward(out.square().sum())
        assert (clean.grad is not None) is context_gradient


def test_every_row_of_a_batch_is_its_own() -> None:
    config = small.config()
    dit = small.model(config)
    with torch.inference_mode():
        scene = small.scene(dit, rows=3)
        clean, noisy = small.latents(config, 3, 2, seed=5), small.latents(config, 3, 2, seed=6)
        embeddings, heard = small.speech(config, 6)
        level = torch.tensor([0.3, 0.75, 1.0])
        together = clip(
            small.passes(dit),
            scene,
            clean=clean,
            noisy=noisy,
            level=level,
            audio=dit.hear(embeddings, heard),
        )
        for row in range(3):
            one = slice(row, row + 1)
            given = [
                type(g)(*(kv and KeysValues(kv.k[one], kv.v[one]) for kv in g)) for g in scene.given
            ]
            assert scene.faces is not None
            alone = clip(
                small.passes(dit),
                Scene(scene.anchor[one], given, scene.faces[one]),
                clean=clean[one],
                noisy=noisy[one],
                level=level[one],
                audio=dit.hear(embeddings[2 * row : 2 * row + 2], heard[2 * row : 2 * row + 2]),
            )
            torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)


def test_moving_a_turned_key_is_turning_it_elsewhere() -> None:
    keys = torch.randn(2, 6, 3, 24)
    there = turn(keys, table(24, frames=range(4, 5), rows=range(2), columns=range(3)))
    here = turn(keys, table(24, frames=range(1, 2), rows=range(2), columns=range(3)))
    torch.testing.assert_close(turn(there, shift(24, -3)), here, rtol=1e-5, atol=1e-5)


def test_without_text_picture_or_audio() -> None:
    """The barest model still streams as its clip does."""
    config = replace(small.config(), text=None, clip=None, anchor=None, audio=None)
    dit = small.model(config)
    with torch.inference_mode():
        scene = small.scene(dit)
        clean, noisy = small.latents(config, 1, 3, seed=5), small.latents(config, 1, 3, seed=6)
        whole = clip(
            small.passes(dit),
            scene,
            clean=clean,
            noisy=noisy,
            level=torch.tensor([LEVEL]),
            audio=None,
        )
        assert whole.shape == noisy.shape
        assert bool(whole.isfinite().all())
