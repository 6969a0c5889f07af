"""The real engines and the real aligner, where they are installed.

Everything around them is tested without them; here is what only they can show: that they speak,
and that the aligner's times are right, for errors of these labels become lips that lag.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.data.speech.align import Aligner, Unalignable
from training.data.speech.audio import RATE, Pcm
from training.data.speech.engines.espeak import Espeak, spoken_parts
from training.data.speech.engines.flite import Flite
from training.data.speech.engines.kokoro import Kokoro
from training.data.speech.engines.piper import Piper
from training.data.speech.engines.recordings import Recordings
from training.data.speech.engines.wav import read_wav
from training.data.speech.mouth import mouth
from training.data.speech.phones import SILENCE, Phone, PhoneTrack, length
from training.data.speech.script import words
from training.data.speech.speech_engine import MissingTool, Unspeakable, program

TEXT = "Bob put a big piece of pie in the bag."


def needs(tool: str) -> None:
    try:
        program(tool, package=tool)
    except MissingTool as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    try:
        return Aligner()
    except MissingTool as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("voice", ["slt", "rms", "awb"])
def test_aligned_mouths_agree_with_flites_own_times(voice: str, aligner: Aligner) -> None:
    """Opening correlates best at lag 0 with the mouth shaped from flite's own durations.

    (Not so for kal16: the durations that flite prints for it are longer than its sound.)
    """
    needs("flite")
    ours, theirs = [], []
    for text in (
        TEXT,
        "My map of Panama is behind the lamp.",
        "Maybe tomorrow, said the champion.",
    ):
        pcm = Flite(voice).speak(text, pace=1)
        track = aligner.align(pcm, text)
        assert length(track) == len(pcm) // (RATE // 100)
        ours.append(mouth(track, pcm))
        theirs.append(mouth(_flites_own(voice, text, len(pcm) // 160), pcm))
    aligned, own = np.concatenate(ours), np.concatenate(theirs)
    for control in (0, 3):
        scores = [
            np.corrcoef(np.roll(aligned[:, control], lag), own[:, control])[0, 1]
            for lag in range(-8, 9)
        ]
        assert abs(int(np.argmax(scores)) - 8) <= 1  # frames of 10 ms
        assert scores[8] > 0.88


def test_flite_is_repeatable_and_keeps_pace() -> None:
    needs("flite")
    slow, fast = (Flite("slt").speak(TEXT, pace=pace) for pace in (0.9, 1.2))
    assert len(slow) / len(fast) == pytest.approx(1.2 / 0.9, rel=0.05)
    np.testing.assert_array_equal(slow, Flite("slt").speak(TEXT, pace=0.9))


def test_espeak_speaks_and_spells() -> None:
    needs("espeak-ng")
    assert _speech_seconds(Espeak("en-us+f3").speak(TEXT, pace=1)) > 1
    assert [mark for _, mark in spoken_parts("Well, I think so. Really?")] == [",", ".", "?"]
    assert spoken_parts("Hi!")[0][0] == "hˈa^ɪ"  # noqa: RUF001 (phonetic letters)


@pytest.mark.parametrize("engine", [Piper, lambda: Kokoro((0.5, 0.0, 0.0, 0.0, 0.5))])
def test_neural_voices_speak_what_aligns(engine: type[Piper], aligner: Aligner) -> None:
    needs("espeak-ng")
    try:
        voice = engine()
    except MissingTool as missing:
        pytest.skip(str(missing))
    text = "I know."
    pcm = voice.speak(text, pace=1)
    assert _speech_seconds(pcm) > 0.3
    names = [phone.name for phone in aligner.align(pcm, text) if phone.name != SILENCE]
    assert names == ["AY", "N", "OW"]


def test_recordings_align_with_their_transcripts(aligner: Aligner) -> None:
    recordings = Recordings()
    try:
        script = recordings.script()
    except MissingTool as missing:
        pytest.skip(str(missing))
    assert len(script) == 5
    track = aligner.align(recordings.speak(script[-1].text, pace=1), script[-1].text)
    assert sum(phone.name == "M" for phone in track) == 4
    with pytest.raises(Unspeakable, match="never recorded"):
        recordings.speak("Something else.", pace=1)


def test_what_does_not_fit_is_refused_and_the_aligner_goes_on(aligner: Aligner) -> None:
    needs("flite")
    pcm = Flite("kal16").speak(TEXT, pace=1)
    with pytest.raises(Unalignable, match="not in the dictionary: blorp"):
        aligner.align(pcm, "Bob put a blorp in the bag.")
    with pytest.raises(Unalignable):
        aligner.align(pcm[: RATE // 4], TEXT)
    assert len(words(TEXT)) < len(aligner.align(pcm, TEXT))


def test_missing_tools_are_named() -> None:
    with pytest.raises(MissingTool, match="apt-get install nothing-such"):
        program("nothing-such", package="nothing-such")


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    """Found out in a worker process, said by the command in one line."""
    command = [sys.executable, "-m", "training.data.speech", "--out", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--voices", "slt", "--hours", "0.001"],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].split(":")[0] in (
        "flite is not installed",
        "pocketsphinx is not installed",
    )


def test_wav_files_of_any_rate_come_at_ours(tmp_path: Path) -> None:
    import wave

    path = tmp_path / "tone.wav"
    tone = np.sin(2 * np.pi * 300 * np.arange(22_050) / 22_050)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22_050)
        file.writeframes((tone * 20_000).astype("<i2").tobytes())
    pcm = read_wav(path)
    assert len(pcm) == RATE
    expected = np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE) * 20_000 / 32_768
    np.testing.assert_allclose(pcm[200:-200], expected[200:-200], atol=3e-3)


def _flites_own(voice: str, text: str, frames: int) -> PhoneTrack:
    """Phones by the durations that flite prints, in its own phone set, as a track."""
    command = [program("flite", package="flite"), "-voice", voice, "-psdur", "-t", text, "none"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    ends = [
        (name, float(end)) for name, _, end in (item.rpartition(":") for item in printed) if name
    ]
    track, begin = [], 0
    for name, end in ends:
        stop = min(frames, round(end * 100))
        if stop > begin:
            arpabet = {"ax": "AH", "pau": SILENCE}.get(name, name.upper())
            track.append(Phone(arpabet, stop - begin))
            begin = stop
    return (*track, Phone(SILENCE, frames - begin)) if begin < frames else tuple(track)


def _speech_seconds(pcm: Pcm) -> float:
    blocks = np.square(pcm[: len(pcm) // 160 * 160]).reshape(-1, 160).mean(1)
    return float((blocks > 1e-4).sum()) / 100
