"""The script is ours to keep whole: two sets apart, every word known, every mouth shape often."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from training.data.speech.align import Aligner
from training.data.speech.phones import CONSONANTS, VOWELS
from training.data.speech.script import Line, read_script, words
from training.data.speech.split import Split


def test_sizes_and_names() -> None:
    train, held_out = read_script(Split.TRAIN), read_script(Split.TEST)
    assert len(train) >= 800
    assert len(held_out) >= 60
    names = [line.name for line in train + held_out]
    assert len(set(names)) == len(names)
    assert {line.split for line in held_out} == {Split.TEST}


def test_no_line_is_said_twice_in_or_across_the_sets() -> None:
    spoken = Counter(" ".join(words(line.text)) for line in _everything())
    assert [text for text, times in spoken.items() if times > 1] == []


def test_held_out_lines_share_no_run_of_five_words_with_training() -> None:
    runs = {run for line in read_script(Split.TRAIN) for run in _runs(line)}
    assert [line.text for line in read_script(Split.TEST) if runs & _runs(line)] == []


def test_lines_hold_nothing_but_words_and_marks() -> None:
    odd = [line.text for line in _everything() if not re.fullmatch(r"[A-Za-z' ,.!?]+", line.text)]
    assert odd == []
    assert [line.text for line in _everything() if line.text[-1] not in ".!?"] == []


def test_all_kinds_of_lines_are_there() -> None:
    texts = [line.text for line in read_script(Split.TRAIN)]
    assert sum(text.endswith("?") for text in texts) >= 40
    assert sum(text.endswith("!") for text in texts) >= 25
    assert sum(len(re.findall("[pbm]", text.lower())) >= 3 for text in texts) >= 250
    lengths = sorted(len(words(text)) for text in texts)
    assert lengths[0] <= 2
    assert lengths[-1] >= 14


def test_words_are_in_the_dictionary_and_phones_well_spread() -> None:
    pronounced = _pronunciations()
    lines = [
        [phone for word in words(line.text) for phone in pronounced[word]]
        for line in read_script(Split.TRAIN)
    ]
    phones = Counter(phone for line in lines for phone in line)
    assert {phone for phone in VOWELS | CONSONANTS if phones[phone] < 25} == set()
    pairs = Counter(pair for line in lines for pair in pairwise(line))
    assert len(pairs) >= 1000  # of some 1,300 that English has within and between words
    closures = sum(phones[phone] for phone in "PBM")
    assert closures / phones.total() > 0.08  # in running English text, about 7 %


def _pronunciations() -> dict[str, list[str]]:
    """First pronunciation of every word in the script; fails on an unknown one."""
    pytest.importorskip("pocketsphinx", reason="CMUdict comes with pocketsphinx")
    aligner = Aligner()
    texts = [line.text for line in _everything()]
    assert [word for text in texts for word in aligner.unknown(text)] == []
    return {word: aligner.pronunciation(word) for text in texts for word in words(text)}


def _everything() -> list[Line]:
    return read_script(Split.TRAIN) + read_script(Split.TEST)


def _runs(line: Line) -> set[tuple[str, ...]]:
    said = words(line.text)
    return {tuple(said[start : start + 5]) for start in range(len(said) - 4)}
