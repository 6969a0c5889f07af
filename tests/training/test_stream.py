"""From a picture and a recording to a film, through both engines."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from services.score.checkpoint.loading import save, save_front_end
from services.score.contract import Rectangle
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.model import Dit
from services.vae import checkpoint
from services.vae.model import Vae
from talkingmachines.spec import StreamSpec
from tests.training import small
from training import stream
from training.flow import initialised
from training.sheet import write_png

FACE = Rectangle(0.1, 0.2, 0.9, 0.95)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    dit = initialised(Dit(small.dit()))
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save(tmp_path / "score", dit.config, dit.state_dict().items())
    save_front_end(tmp_path / "score", SpeechEncoder(small.FRONT_END))
    checkpoint.save(Vae(small.vae()), tmp_path / "vae")
    return tmp_path


def sine(samples: int) -> stream.Pcm16:
    wave: stream.Pcm16 = (8000 * np.sin(np.arange(samples) * 0.2)).astype(np.int16)
    return wave


def test_a_recording_becomes_a_film_of_its_length_with_its_sound(
    model: Path, tmp_path: Path
) -> None:
    score, vae = stream.engines(model)
    write_png(torch.full((3, 40, 60), 90, dtype=torch.uint8), tmp_path / "a.png")
    picture = stream.read_picture(tmp_path / "a.png", 32, 32)
    assert picture.shape == (32, 32, 3)
    speech = sine(2 * 7680 + 1000)
    film = stream.Mp4(tmp_path / "a.mp4", score.spec)
    for frames in stream.talk(score, vae, picture, FACE, speech):
        assert frames.shape == (4, 32, 32, 3)  # of one latent
        film.show(frames)
    film.close(speech)
    with av.open(str(tmp_path / "a.mp4")) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert sum(1 for _ in file.decode(video)) == 36
    assert len(stream.read_speech(tmp_path / "a.mp4", 16_000)) == pytest.approx(36 * 640, abs=2048)


def test_pieces_overlap_by_the_look_ahead_and_end_in_silence() -> None:
    spec = StreamSpec(16_000, 25, 3, 4, 32, 32, lookahead_samples=1280)
    speech = sine(2 * 7680 + 5)
    cut = list(stream.pieces(speech, spec))
    assert [len(piece) for piece in cut] == [7680 + 1280] * 3
    assert np.array_equal(cut[0][7680:], cut[1][:1280])
    assert np.array_equal(np.concatenate([piece[:7680] for piece in cut])[: len(speech)], speech)
    assert not cut[2][5:].any()
