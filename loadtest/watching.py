"""What a caller sees and hears of its call, turned into samples.

On the path: session → **watching** → book. One for each call; fed with every item in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from loadtest.book import Book, CallLog
from loadtest.marks import Ear, Eye, greeted
from loadtest.measures import Measure, drift
from loadtest.screen import Screen, Together
from talkingmachines.media import Pcm
from talkingmachines.picture import VideoFrame
from talkingmachines.received import Preroll
from talkingmachines.session import Event, Item, Reconnecting, Resumed
from talkingmachines.v1 import avatar_pb2

_LOOK_SECONDS = 1.0  # between two frames whose mark is looked at, and between two reports
# Of the gateway's own counts, which are totals since the session was opened.
_COUNTED = {
    Measure.DEADLINE_MISSES: "deadline_misses",
    Measure.HAND_OVERS: "hand_overs",
    Measure.REBUILDS: "rebuilds",
}


class Watching:
    """Args:
    log: of this call; gets its stalls.
    ear: DRIVE: knows the caller's own sound; None: the character speaks for itself.
    rang: when it began to ring, on the book's clock.
    """

    def __init__(
        self,
        book: Book,
        log: CallLog,
        *,
        screen: Screen,
        ear: Ear | None,
        eye: Eye,
        rang: float,
    ) -> None:
        self.screen = screen
        self._ear = ear
        self._book, self._log, self._rang = book, log, rang
        self._together = Together(screen.fps)
        self._eye = eye
        self._looked = -_LOOK_SECONDS
        self._asked: deque[tuple[int, float]] = deque()  # DRIVE: sample of what was said, when
        self._asked_at: float | None = None  # CONVERSE: when the user had spoken
        self._cut_at: float | None = None
        self._skews: list[float] = []  # since the last report
        self._skewed: list[tuple[float, float]] = []  # a value of each report
        self._told = dict.fromkeys(_COUNTED, 0)
        self._reported_frames = self._reported_missing = 0
        self._reported_stalls = self._reported_pauses = 0
        self._checked = self._misnamed = 0  # names in greetings: all, and those of others
        self._told_marks = (0, 0)
        self.turn_began: Callable[[], None] = lambda: None
        self.turn_over: Callable[[], None] = lambda: None

    # ---- What the caller does ----

    def asks(self, sample: int) -> None:
        """DRIVE: the caller begins to say something, at this sample of all it says."""
        self._asked.append((sample, self._book.now))

    def asked(self) -> None:
        """CONVERSE: the user has just said the last of it."""
        self._asked_at = self._book.now

    def cuts_off(self) -> None:
        self._cut_at = self._book.now

    # ---- What comes ----

    def takes(self, item: Item) -> None:
        match item:
            case VideoFrame():
                self._frame(item)
            case Pcm():
                self._sound(item)
            case Preroll():
                pass
            case _:
                self._event(item)

    def _frame(self, frame: VideoFrame) -> None:
        now = self._book.now
        if not self.screen.frames:
            self._note(Measure.FIRST_FRAME, now - self._rang)
        self.screen.frame(frame.frame, now)
        self._together.frame(frame.frame, now)
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._eye.sees(frame)
            self._report()

    def _sound(self, pcm: Pcm) -> None:
        now = self._book.now
        skew = self._together.sound(pcm.first_sample / pcm.sample_rate, now)
        if skew is not None:
            self._skews.append(skew)
        heard = self._ear.hears(pcm) if self._ear else None
        asked_at = None
        while heard is not None and self._asked and self._asked[0][0] < heard:
            _, asked_at = self._asked.popleft()  # what was cut off before it was heard goes too
        if asked_at is not None:
            self._note(Measure.ANSWER, now - asked_at)

    def _event(self, event: Event) -> None:
        match event:
            case avatar_pb2.Statistics():
                self._statistics(event)
            case avatar_pb2.Interrupted():
                self.screen.cut(event.frame, self._book.now)
                if self._cut_at is not None:
                    self._note(Measure.INTERRUPTED, self._book.now - self._cut_at)
                    self._cut_at = None
                self.turn_over()
            case avatar_pb2.TurnStarted():
                self._answered()
                self.turn_began()
            case avatar_pb2.TurnEnded():
                self._cut_at = None  # it came to its end before it could be cut off
                self.turn_over()
            case avatar_pb2.Transcript():
                self._transcript(event)
            case Resumed(seconds=seconds):
                self._note(Measure.RECONNECTS, seconds)
            case Reconnecting():
                self.turn_over()

    def _answered(self) -> None:
        if self._asked_at is not None:
            self._note(Measure.ANSWER, self._book.now - self._asked_at)
            self._asked_at = None

    def _transcript(self, said: avatar_pb2.Transcript) -> None:
        if said.final and said.party == avatar_pb2.PARTY_CHARACTER:
            named = greeted(said.text)
            self._checked += len(named)
            self._misnamed += sum(number != self._log.number for number in named)

    def _statistics(self, told: avatar_pb2.Statistics) -> None:
        for measure, field in _COUNTED.items():
            total = getattr(told, field)
            if total > self._told[measure]:
                self._note(measure, total - self._told[measure])
            self._told[measure] = total  # a session that was resumed may have forgotten some

    # ---- What is written down once a second, and at the end ----

    def _report(self) -> None:
        screen = self.screen
        self._note(Measure.FRAMES, screen.frames - self._reported_frames)
        if screen.missing > self._reported_missing:
            self._note(Measure.MISSING_FRAMES, screen.missing - self._reported_missing)
        self._reported_frames, self._reported_missing = screen.frames, screen.missing
        for began, seconds in screen.stalls[self._reported_stalls :]:
            self._book.note(Measure.STALLS, seconds, call=self._log.number, at=began)
            self._log.stalls.append((began, seconds))
        self._reported_stalls = len(screen.stalls)
        for pause in screen.pauses[self._reported_pauses :]:
            self._note(Measure.CUT_PAUSES, pause)
        self._reported_pauses = len(screen.pauses)
        if self._skews:
            mean = sum(self._skews) / len(self._skews)
            self._skewed.append((self._book.now, mean))
            self._note(Measure.SKEW, mean)
            self._skews.clear()
        self._marks()

    def _marks(self) -> None:
        heard, foreign = (self._ear.heard, self._ear.foreign) if self._ear else (0, 0)
        checked = heard + self._eye.seen + self._checked
        crossed = foreign + self._eye.foreign + self._misnamed
        if checked > self._told_marks[0]:
            self._note(Measure.MARKS_SEEN, checked - self._told_marks[0])
        if crossed > self._told_marks[1]:
            self._note(Measure.CROSS_TALK, crossed - self._told_marks[1])
        self._told_marks = (checked, crossed)

    def ends(self) -> None:
        """The caller sees no more of it."""
        screen = self.screen
        screen.gone(self._book.now)
        self._report()
        if not screen.frames:
            return
        seconds = self._book.now - self._rang
        stalled = sum(length for _, length in screen.stalls)
        self._note(Measure.STALLED_SHARE, stalled / seconds)
        moved = drift(self._skewed)
        if moved is not None:
            self._note(Measure.SKEW_DRIFT, abs(moved))

    def _note(self, measure: Measure, value: float) -> None:
        self._book.note(measure, value, call=self._log.number)
