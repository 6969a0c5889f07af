"""The corpus survives whatever ends a run, and grows by the same plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.speech.conftest import Tones, align, syllables, tones
from training.data.speech.audio import RATE
from training.data.speech.build import plan, read, trimmed
from training.data.speech.corpus import BeingWritten, Corpus, Dropped, VoicePack, only_writer
from training.data.speech.phones import Phone, length
from training.data.speech.split import Split
from training.data.speech.voices import Voice, roster

Reading = Callable[[Voice, float], VoicePack]


def test_a_voice_reads_up_to_its_quota_and_no_further(read_into: Reading) -> None:
    pack = read_into(tones(), 12)
    trained = [row for row in pack.utterances() if row.split is Split.TRAIN]
    assert sum(row.seconds for row in trained) >= 12
    assert sum(row.seconds for row in trained[:-1]) < 12
    assert len([row for row in pack.utterances() if row.split is Split.TEST]) >= 3


def test_a_test_voice_reads_held_out_lines_alone(read_into: Reading) -> None:
    pack = read_into(tones("other", Split.TEST), 1e9)
    assert len(list(pack.utterances())) >= 50
    assert {row.split for row in pack.utterances()} == {Split.TEST}
    assert all(row.line.startswith("h") for row in pack.rows)


def test_a_run_in_two_parts_equals_one_run(tmp_path: Path) -> None:
    whole = VoicePack(tmp_path / "whole", "tones")
    read(tones(), whole, quota=16, align=align)
    for quota in (5, 5, 16):
        read(tones(), VoicePack(tmp_path / "parts", "tones"), quota=quota, align=align)
    for name in ("tones.ogg", "tones.jsonl"):
        parts, at_once = ((tmp_path / run / name).read_bytes() for run in ("parts", "whole"))
        # Ogg streams carry a random serial number each.
        assert len(parts) == len(at_once) if name.endswith("ogg") else parts == at_once


@pytest.mark.parametrize("torn", ["row", "sound", "both"])
def test_what_a_crash_left_behind_is_mended(tmp_path: Path, torn: str) -> None:
    read(tones(), VoicePack(tmp_path, "tones"), quota=4, align=align)
    before = Corpus.open(tmp_path)
    sounds = [before.sound(row) for row in before.utterances]
    if torn in ("row", "both"):
        with (tmp_path / "tones.jsonl").open("a") as index:
            index.write('{"voice": "tones", "engi')
    if torn in ("sound", "both"):
        with (tmp_path / "tones.ogg").open("ab") as pack:
            pack.write(b"OggS half a file")
    read(tones(), VoicePack(tmp_path, "tones"), quota=8, align=align)
    after = Corpus.open(tmp_path)
    assert after.utterances[: len(before.utterances)] == before.utterances
    assert len(after.utterances) > len(before.utterances)
    for row, sound in zip(after.utterances, sounds, strict=False):
        np.testing.assert_array_equal(after.sound(row), sound)
    assert np.abs(after.sound(after.utterances[-1])).max() > 0.1


def test_one_process_at_a_time_adds_to_a_voice(tmp_path: Path) -> None:
    slt, rms, again = (only_writer(tmp_path, name) for name in ("slt", "rms", "slt"))
    with slt, rms, pytest.raises(BeingWritten, match="slt"), again:
        pass
    with only_writer(tmp_path, "slt"):
        pass


def test_lines_that_fail_are_noted_and_not_tried_again(tmp_path: Path) -> None:
    engine = Tones(dumb="!")
    voice = replace(tones(), open=lambda: engine)
    read(voice, VoicePack(tmp_path, "tones"), quota=25, align=align)
    pack = VoicePack(tmp_path, "tones")
    reasons = [row.dropped for row in pack.rows if isinstance(row, Dropped)]
    assert any("questions" in reason for reason in reasons)
    assert any("!" in reason for reason in reasons)
    spoken = engine.spoken
    read(voice, pack, quota=25, align=align)
    assert engine.spoken == spoken


def test_sound_and_phones_come_back(tmp_path: Path) -> None:
    read(tones(), VoicePack(tmp_path, "tones"), quota=5, align=align)
    corpus = Corpus.open(tmp_path)
    for row in corpus.utterances:
        assert length(row.track) == row.samples // 160
        pcm, track = trimmed(Tones().speak(row.text, pace=row.pace), syllables(row.text))
        assert row.track == track
        assert np.corrcoef(corpus.sound(row), pcm)[0, 1] > 0.97


def test_silence_at_the_ends_is_cut_to_a_fifth_of_a_second() -> None:
    track = (Phone("SIL", 50), Phone("AA", 10), Phone("SIL", 15))
    pcm = np.arange(75 * 160 + 7, dtype=np.float32)
    kept, phones = trimmed(pcm, track)
    assert phones == (Phone("SIL", 20), Phone("AA", 10), Phone("SIL", 15))
    assert len(kept) == 45 * 160
    assert kept[0] == 30 * 160


def test_a_folder_without_a_corpus_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m training\.data\.speech"):
        Corpus.open(tmp_path)


def test_every_voice_has_its_own_order_and_a_stable_one() -> None:
    plans = {voice.name: plan(voice) for voice in roster() if voice.split is Split.TRAIN}
    assert len({tuple(line.name for line in lines) for lines in plans.values()}) == len(plans)
    assert plan(tones()) == plan(tones())


def test_paces_vary_around_the_voices_own(read_into: Reading) -> None:
    paces = [row.pace for row in read_into(tones(), 20).utterances()]
    assert min(paces) < 0.95
    assert max(paces) > 1.05
    assert all(0.88 <= pace <= 1.12 for pace in paces)
    assert RATE == 16_000
