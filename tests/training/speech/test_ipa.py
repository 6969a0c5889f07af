"""Mappings on espeak-ng's own output, written down here so that no program is needed."""

from __future__ import annotations

from training.data.speech.ipa import kokoro_symbols, piper_symbols

KOKORO = set(" ,.!?AIOTWYbdfhijklmnpstuvwzæðŋɑəɛɜɡɪɹʃʊʌʒʤʧˈˌᵊθ")


def test_diphthongs_and_affricates_become_single_symbols() -> None:
    parts = [("t^ʃˈɔ^ɪs ma^ɪ na^ʊ", ","), ("pˈe^ɪd^ʒ ɡˈo^ʊ", ".")]
    assert kokoro_symbols(parts, KOKORO | {"Y"}) == "ʧˈYs mI nW, pˈAʤ ɡˈO."


def test_length_marks_go_and_r_colours_are_spelled_out() -> None:
    assert kokoro_symbols([("wˈɜːd hˈɜːɹ bˈɛɾɚ", "")], KOKORO) == "wˈɜɹd hˈɜɹɹ bˈɛTəɹ"


def test_the_word_i_is_stressed_and_no_other() -> None:
    parts = [("wˈɛl", ","), ("a^ɪm a^ɪ ma^ɪ", ".")]
    assert kokoro_symbols(parts, KOKORO) == "wˈɛl, ˈIm ˈI mI."


def test_symbols_outside_the_vocabulary_are_left_out() -> None:
    assert kokoro_symbols([("pˈɑːt", "?")], set("pɑt?")) == "pɑt?"


def test_piper_reads_plain_ipa() -> None:
    parts = [("t^ʃˈɔ^ɪs", ","), ("hˈɜːɹ", "!")]
    assert piper_symbols(parts, set(" ,!tʃˈɔɪshɜːɹ")) == "tʃˈɔɪs, hˈɜːɹ!"
