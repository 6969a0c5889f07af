"""What is for testing stays out of training, by type and by record."""

from __future__ import annotations

import pytest

from training.data.speech.corpus import Corpus
from training.data.speech.crops import SpeechSet
from training.data.speech.split import Split, Test, Train
from training.data.speech.voices import roster


@pytest.mark.parametrize("voice", list(Split))
@pytest.mark.parametrize("line", list(Split))
def test_one_part_for_testing_makes_the_whole_so(voice: Split, line: Split) -> None:
    both_train = voice is Split.TRAIN and line is Split.TRAIN
    assert voice.joined(line) is (Split.TRAIN if both_train else Split.TEST)


def test_sets_split_the_corpus_and_refuse_the_other_half(corpus: Corpus) -> None:
    train, test = SpeechSet.of(corpus, Train), SpeechSet.of(corpus, Test)
    assert len(train.utterances) + len(test.utterances) == len(corpus.utterances)
    assert all(item.line.startswith("t") for item in train.utterances)
    assert all(item.line.startswith("h") for item in test.utterances)
    with pytest.raises(ValueError, match="for test, not for train"):
        SpeechSet(corpus, Train, test.utterances[:1])
    with pytest.raises(ValueError, match="for train, not for test"):
        SpeechSet(corpus, Test, train.utterances[:1])
    with pytest.raises(ValueError, match="no utterance"):
        SpeechSet(corpus, Train, [])


def test_voices_with_doubtful_lineage_are_for_testing() -> None:
    splits = {voice.name: voice.split for voice in roster()}
    assert splits["joe"] is Split.TEST
    assert splits["librivox"] is Split.TEST


def test_espeak_is_a_few_percent_of_the_hours() -> None:
    shares = {voice.name: voice.share for voice in roster()}
    assert sum(shares[name] for name in ("e_male", "e_female")) < 0.05 * sum(shares.values())
