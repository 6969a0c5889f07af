"""Phone tracks survive being written down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.speech.phones import PHONES, Phone, length, parsed, written

tracks = st.lists(
    st.builds(Phone, st.sampled_from(sorted(PHONES)), st.integers(1, 90)), min_size=1
).map(tuple)


@given(tracks)
def test_written_and_parsed_are_inverse(track: tuple[Phone, ...]) -> None:
    assert parsed(written(track)) == track
    assert length(track) == sum(phone.frames for phone in track)


@pytest.mark.parametrize("line", ["XX 3", "AA 0", "AA", "AA 3 B", "AA three"])
def test_a_torn_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parsed(line)
