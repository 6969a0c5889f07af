"""When each phone was said: one aligner for every voice, so that timing means one thing.

Engines' own durations disagree with each other by 40 to 120 ms, which a network hears as noise:
with one aligner, mouth opening on an unseen engine went from r = 0.44 to 0.83.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from training.data.speech.audio import RATE, Pcm
from training.data.speech.phones import FRAMES_PER_SECOND, PHONES, SILENCE, Phone, PhoneTrack
from training.data.speech.script import words
from training.data.speech.speech_engine import missing_package

_HOP = RATE // FRAMES_PER_SECOND
# The decoder loses an utterance's first and last phones where there is no silence around them.
_MARGIN = 12  # frames of faint noise put around the clip, cut away again
_LONGEST = 70  # frames of one phone; longer ones are an alignment gone wrong


class Unalignable(RuntimeError):
    """A clip that does not fit its text."""


class Aligner:
    """pocketsphinx (BSD) with its US English model and CMUdict. One per process."""

    def __init__(self) -> None:
        self._decoder = _decoder()

    def unknown(self, text: str) -> list[str]:
        """Words of `text` that the pronouncing dictionary lacks."""
        return [word for word in words(text) if not self._decoder.lookup_word(word)]

    def pronunciation(self, word: str) -> list[str]:
        """The phones of a known word, as the dictionary gives them first."""
        return str(self._decoder.lookup_word(word)).split()

    def align(self, pcm: Pcm, text: str) -> PhoneTrack:
        """The phones of `text` in `pcm`, as many frames as the clip has whole 10 ms.

        Raises:
            Unalignable: an unknown word, or no path through the clip.
        """
        if unknown := self.unknown(text):
            raise Unalignable(f"not in the dictionary: {', '.join(unknown)}")
        sound = _framed(pcm)
        self._decoder.set_align_text(" ".join(words(text)))
        self._decode(sound)  # finds the words
        if self._decoder.hyp() is None:  # (asked after the second pass, this ends the process)
            raise Unalignable("nothing was heard")
        self._decoder.set_alignment()
        self._decode(sound)  # finds the phones in them
        return _checked(self._spans(), len(pcm) // _HOP)

    def _decode(self, sound: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(sound, full_utt=True)
        try:
            self._decoder.end_utt()
        except RuntimeError:  # how it says that no path reached the last word
            self._decoder = _decoder()  # who knows what state the old one is in
            raise Unalignable("no path through the clip") from None

    def _spans(self) -> list[tuple[str, int, int]]:
        """Phone, first frame, frame after its last."""
        spans = []
        # Children are valid only while their parent's iterator stands on them: never list() these.
        for word in self._decoder.get_alignment():
            for phone in word:
                name = phone.name if phone.name in PHONES else SILENCE  # +SPN+ and +NSN+
                spans.append((name, phone.start, phone.start + phone.duration))
        return spans


def _decoder() -> Any:
    try:
        import pocketsphinx
    except ImportError:
        raise missing_package("pocketsphinx") from None
    # The best path through its word lattice can give a word less time than its phones need, which
    # fails the second pass or ends the process (cmusphinx/pocketsphinx #318, #500).
    return pocketsphinx.Decoder(lm=None, loglevel="FATAL", bestpath=False)


def _framed(pcm: Pcm) -> bytes:
    """16-bit samples with a margin of faint noise around them."""
    faint = np.random.default_rng(0).normal(0, 3e-4, len(pcm) + 2 * _MARGIN * _HOP)
    faint[_MARGIN * _HOP : _MARGIN * _HOP + len(pcm)] += pcm
    return (faint.clip(-1, 1) * 32767).astype("<i2").tobytes()


def _checked(spans: list[tuple[str, int, int]], frames: int) -> PhoneTrack:
    """Spans as a track of exactly `frames`, silence where nothing was found."""
    names = [SILENCE] * frames
    starts = np.zeros(frames, bool)
    for name, begin, end in spans:
        if name != SILENCE and end - begin > _LONGEST:
            raise Unalignable(f"{name} for {(end - begin) * 10} ms")
        begin, end = max(0, begin - _MARGIN), min(frames, end - _MARGIN)
        if begin < end:
            names[begin:end] = [name] * (end - begin)
            starts[begin] = name != SILENCE
    track: list[Phone] = []
    begin = 0
    for frame in range(1, frames + 1):
        if frame == frames or starts[frame] or names[frame] != names[begin]:
            track.append(Phone(names[begin], frame - begin))
            begin = frame
    return tuple(track)
