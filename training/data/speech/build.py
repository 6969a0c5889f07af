"""Making the corpus: each voice reads its lines, the aligner times them, the pack keeps them.

Resumable: what a voice has read is read from its index, and the rest of the same plan goes on. The
plan depends on the voice's name alone, so more hours later extend the same corpus.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from training.data.speech.align import Aligner, Unalignable
from training.data.speech.audio import RATE, Pcm
from training.data.speech.corpus import Utterance, VoicePack, only_writer
from training.data.speech.phones import FRAMES_PER_SECOND, SILENCE, Phone, PhoneTrack, written
from training.data.speech.script import Line, read_script
from training.data.speech.speech_engine import SpeechEngine, Unspeakable
from training.data.speech.split import Split
from training.data.speech.voices import Voice, roster

_SEED = 2506
_PACE = 0.12  # up to this much slower or faster than the voice's own pace
_SILENCE = 20  # frames that are kept before the first and after the last phone


@dataclass(frozen=True, slots=True)
class Tally:
    voice: str
    utterances: int
    seconds: float
    dropped: int


def build(out: Path, *, hours: float, voices: list[str], jobs: int) -> Iterator[Tally]:
    """Bring the corpus in `out` to `hours` of training speech and yield each voice as it is done.

    Args:
        voices: names of those that read now; every voice's share of the hours is the same
            whoever reads now.
        jobs: processes, one voice each at a time.
    """
    shares = sum(voice.share for voice in roster())
    quotas = {
        voice.name: hours * 3600 * voice.share / shares
        for voice in roster()
        if voice.name in voices
    }
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        reading = [pool.submit(_read_in_process, out, name, quotas[name]) for name in quotas]
        for done in as_completed(reading):
            yield done.result()


def read(
    voice: Voice,
    pack: VoicePack,
    *,
    quota: float,
    align: Callable[[Pcm, str], PhoneTrack],
) -> Tally:
    """Let one voice read until `quota` seconds of training speech are in its pack."""
    done = {row.line for row in pack.rows}
    seconds = sum(row.seconds for row in pack.utterances() if row.split is Split.TRAIN)
    engine: SpeechEngine | None = None
    for line in plan(voice):
        if line.split is Split.TRAIN and seconds >= quota:
            break
        if line.name in done:
            continue
        engine = engine or voice.open()
        seconds += _read_line(voice, engine, line, pack, align)
    said = list(pack.utterances())
    whole = sum(row.seconds for row in said)
    return Tally(voice.name, len(said), whole, len(pack.rows) - len(said))


def plan(voice: Voice) -> list[Line]:
    """All that a voice may read, in order: lines for testing, then the others shuffled."""
    lines = voice.held_out()
    if voice.split is Split.TRAIN:
        order = np.random.default_rng([_SEED, zlib.crc32(voice.name.encode())])
        script = read_script(Split.TRAIN)
        lines = lines + [script[index] for index in order.permutation(len(script))]
    return lines


def _read_in_process(out: Path, name: str, quota: float) -> Tally:
    voice = next(voice for voice in roster() if voice.name == name)
    with only_writer(out, name):
        return read(voice, VoicePack(out, name), quota=quota, align=Aligner().align)


def _read_line(
    voice: Voice,
    engine: SpeechEngine,
    line: Line,
    pack: VoicePack,
    align: Callable[[Pcm, str], PhoneTrack],
) -> float:
    """Seconds of training speech added."""
    seed = zlib.crc32(f"{voice.name} {line.name}".encode())
    drawn = np.random.default_rng([_SEED, seed]).uniform(-_PACE, _PACE)
    pace = round(voice.pace * (1 + drawn), 3)
    try:
        pcm = engine.speak(line.text, pace=pace)
        pcm, track = trimmed(pcm, align(pcm, line.text))
    except (Unspeakable, Unalignable) as reason:
        pack.drop(line.name, str(reason))
        return 0.0
    split = voice.split.joined(line.split)
    pack.add(
        Utterance(
            voice=voice.name,
            engine=voice.engine,
            split=split,
            line=line.name,
            text=line.text,
            seed=seed,
            pace=pace,
            offset=0,
            size=0,
            samples=0,
            phones=written(track),
        ),
        pcm,
    )
    return len(pcm) / RATE if split is Split.TRAIN else 0.0


def trimmed(pcm: Pcm, track: PhoneTrack) -> tuple[Pcm, PhoneTrack]:
    """Clip and phones with no more than 0.2 s of silence at either end."""
    hop = RATE // FRAMES_PER_SECOND
    phones = list(track)
    first = last = 0
    if phones[0].name == SILENCE and phones[0].frames > _SILENCE:
        first = phones[0].frames - _SILENCE
        phones[0] = Phone(SILENCE, _SILENCE)
    if phones[-1].name == SILENCE and phones[-1].frames > _SILENCE:
        last = phones[-1].frames - _SILENCE
        phones[-1] = Phone(SILENCE, _SILENCE)
    kept = sum(phone.frames for phone in phones)
    assert first + kept + last == len(pcm) // hop
    return pcm[first * hop : (first + kept) * hop], tuple(phones)
