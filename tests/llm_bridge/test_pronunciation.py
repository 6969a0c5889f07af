"""How words sound: known ones, known ones with an ending, and anything else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_bridge.local.pronunciation import Pronunciation


@pytest.fixture(scope="module")
def english() -> Pronunciation:
    return Pronunciation.english()


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("Hello, world!", "həlˈO, wˈɜɹld!"),
        ("the end of the day", "ði ˈɛnd ʌv ðə dˈA"),
        ("Dr. Brown", "dˈɑktəɹ bɹˈWn"),
        ("5%", "fˈIv pəɹsˈɛnt"),
    ],
)
def test_known_words_sound_as_the_lexicon_says(
    text: str, symbols: str, english: Pronunciation
) -> None:
    assert english.symbols(text) == symbols


def test_endings_follow_the_sound_before_them() -> None:
    small = Pronunciation({"glorp": "ɡlˈɔɹp", "zim": "zˈɪm", "blitch": "blˈɪʧ", "I": "ˈI"})
    assert small.symbols("glorps zims blitches") == "ɡlˈɔɹps zˈɪmz blˈɪʧᵻz"
    assert small.symbols("glorped zimmed zimming") == "ɡlˈɔɹpt zˈɪmd zˈɪmɪŋ"


@given(st.text(max_size=60))
def test_anything_can_be_pronounced(text: str) -> None:
    small = Pronunciation({"a": "A"})
    assert not re.search(r"\d", small.symbols(text))
    words = re.findall(r"[b-zB-Z]{3,}", text)
    assert not words or any(symbol.isalpha() for symbol in small.symbols(text))
