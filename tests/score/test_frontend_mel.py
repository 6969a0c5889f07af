"""The shipped model's front end: its spectrum, its size, its features."""

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from services.score.frontend.config import MelConfig, MelFrontEnd
from services.score.frontend.logmel import LogMel, mel_bands
from services.score.frontend.speech_encoder import SpeechEncoder
from tests.score.frontends import speech


def test_bands_equal_an_independent_implementation() -> None:
    other = mel_filter_bank(257, 80, 50.0, 7_600.0, 16_000, norm=None, mel_scale="htk")
    got = mel_bands(MelConfig())
    torch.testing.assert_close(got, torch.tensor(np.asarray(other).T).float(), atol=1e-5, rtol=0)


def test_a_frame_is_the_log_energy_of_its_window() -> None:
    config = MelConfig()
    samples = speech(2_000)
    mel = LogMel(config)(samples)
    assert mel.shape == (1, (2_000 - config.history) // config.hop, config.bands)
    frame = 4
    window = samples[0, frame * 160 : frame * 160 + 400].double().numpy()
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    energy = np.abs(np.fft.rfft(window * hann, 512)) ** 2
    expected = np.log10(mel_bands(config).double().numpy() @ energy + 1e-8) / 4 + 1
    assert np.abs(mel[0, frame].numpy() - expected).max() < 1e-4


def test_silence_is_minus_one_and_a_tone_lights_its_band() -> None:
    mel = LogMel(MelConfig())
    torch.testing.assert_close(mel(torch.zeros(1, 800)), torch.full((1, 3, 80), -1.0))
    tone = 0.5 * torch.sin(2 * torch.pi * 1_000 * torch.arange(800) / 16_000)
    band = int(mel(tone[None])[0, 1].argmax())
    low, high = mel_bands(MelConfig())[band].nonzero()[[0, -1], 0] * 16_000 / 512
    assert low <= 1_000 <= high


def test_it_has_the_size_that_was_trained_before() -> None:
    encoder = SpeechEncoder(MelFrontEnd())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 298_246
    assert encoder.feature_shape == (134,)
    assert MelFrontEnd().history_samples / 16_000 == 0.505
    assert MelFrontEnd().lookahead_samples / 16_000 == 0.08


def test_features_are_hidden_then_controls_standardised() -> None:
    encoder = SpeechEncoder(MelFrontEnd(width=8, lookahead=0)).requires_grad_(False)
    mel = encoder.mel(torch.nn.functional.pad(speech(16_000), (240, 0)))
    hidden, controls, _ = encoder(mel, encoder.no_past(1))
    raw = torch.cat([hidden, controls], dim=-1)
    assert controls.shape == (1, 25, 6)
    encoder.offset.copy_(raw.mean((0, 1)))
    encoder.scale.copy_(1 / raw.std((0, 1)))
    features, _ = encoder.push(speech(16_000), encoder.start(0))
    skipped = 25 - features.shape[1]
    assert skipped == -(-encoder.config.history_samples // 640)
    expected = (raw - raw.mean((0, 1))) / raw.std((0, 1))
    torch.testing.assert_close(features, expected[:, skipped:], atol=1e-5, rtol=1e-5)


def test_statistics_travel_with_the_weights() -> None:
    names = set(SpeechEncoder(MelFrontEnd(dilations=(1,))).state_dict())
    assert names == {
        "offset",
        "scale",
        "convolutions.0.weight",
        "convolutions.0.bias",
        "controls.weight",
        "controls.bias",
    }
