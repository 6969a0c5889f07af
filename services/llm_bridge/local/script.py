"""Answers without any model: a listener in the manner of Weizenbaum's ELIZA, in character.

On the path: dialogue → **script**. It turns what the user says around, asks on, and knows of
itself what the persona's instructions say in plain words. It is what answers when nothing better
is configured; nobody should take it for more.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import CheckIn, Cue, Greet, Line, Party

_NAME = re.compile(r"\b(?:[Yy]ou are|[Yy]our name is|[Nn]amed|[Cc]alled|I am)\s+([A-Z][\w'-]+)")
_ROLE = re.compile(
    r"\b[Yy]ou(?:'re| are)(?: [A-Z][\w'-]+,?)? ((?:an?|the) [^.!?\n;]{3,120})", re.UNICODE
)
_FACT = re.compile(
    r"\b[Yy]ou ((?:love|like|enjoy|collect|know|live|work|study|teach|hate|fear|dream)"
    r"\b[^.!?\n;]{2,120})"
)
_TURNED = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "am": "are",
    "i'm": "you're", "i've": "you've", "i'd": "you'd", "i'll": "you'll", "you": "I",
    "your": "my", "yours": "mine", "yourself": "myself", "you're": "I'm", "was": "were",
    "we": "you", "our": "your", "us": "you",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Character:
    """What the instructions say in plain words."""

    name: str
    role: str  # "a retired sea captain"
    facts: tuple[str, ...]  # "love old maps"

    @classmethod
    def of(cls, persona: Persona) -> _Character:
        text = persona.instructions
        name, role = _NAME.search(text), _ROLE.search(text)
        return cls(
            name=name[1] if name else "",
            role=_own(role[1]) if role else "",
            facts=tuple(_own(fact) for fact in _FACT.findall(text)),
        )

    @property
    def introduction(self) -> str:
        named = f"I'm {self.name}" if self.name else ""
        if self.role:
            return f"{named}, {self.role}." if named else f"I'm {self.role}."
        return f"{named}." if named else "I'm a character on the other end of this call."


# What the user says, and answers to it; {0}, {1} are parts of it turned around.
_RULES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), answers)
    for pattern, answers in (
        (r"\b(?:my name is|i am called|call me) ([a-z'-]+)",
         ("Nice to meet you, {0}. What brings you here today?",
          "Hello {0}, it's good to put a name to a voice. How are you?")),
        (r"\bhow are you\b|\bhow(?:'s| is) it going\b",
         ("I'm well, thank you. And how are you?", "Quite cheerful, now that you're here. You?")),
        (r"\b(?:thanks|thank you)\b",
         ("You're very welcome.", "Any time. Is there something else on your mind?")),
        (r"\b(?:goodbye|bye|see you|good night)\b",
         ("Goodbye! It was lovely talking to you.", "Take care, and come back soon.")),
        (r"\b(?:i feel|i'm feeling|i am feeling) ([^.?!]+)",
         ("What makes you feel {0}?", "Feeling {0}, I see. Has it been like that for long?")),
        (r"\b(?:i'm|i am) (sad|tired|lonely|angry|afraid|worried|sick|unhappy|nervous)\b",
         ("I'm sorry to hear that. What made you {0}?",
          "That can't be easy. Would you like to tell me about it?")),
        (r"\b(?:i'm|i am) (happy|glad|excited|proud|fine|good|great|okay|well)\b",
         ("That's good to hear! What's behind it?", "Lovely. What has been the best of it?")),
        (r"\bi (?:want|would like|need) ([^.?!]+)",
         ("What would it mean to you to get {0}?", "Suppose you had {0}. What then?")),
        (r"\bi (?:like|love|enjoy) ([^.?!]+)",
         ("What do you like most about {0}?", "Ah, {0}! How did that begin?")),
        (r"\bi (?:think|believe|guess) (?:that )?([^.?!]+)",
         ("What makes you think that {0}?", "Interesting. Are you sure that {0}?")),
        (r"\bi (?:can't|cannot|can not) ([^.?!]+)",
         ("What keeps you from it?", "Perhaps you can, with a little help. What have you tried?")),
        (r"\bi remember ([^.?!]+)",
         ("What else comes back when you think of {0}?", "And how do you look at {0} today?")),
        (r"\bbecause ([^.?!]+)",
         ("Is that the whole reason?", "That makes sense. Are there other reasons?")),
        (r"\bmy (mother|father|brother|sister|wife|husband|son|daughter|friend|dog|cat)\b",
         ("Tell me more about your {0}.", "What is your {0} like?")),
        (r"\bcan you (?:help|tell)\b",
         ("I'll try my best. What would you like to know?", "Gladly, as far as I can. Go on?")),
        (r"\bdo you (?:like|love|enjoy) ([^.?!]+)",
         ("I do like {0}, in my own way. And you?", "{0}? I could go on about that. You?")),
        (r"^(?:yes|yeah|yep|sure|of course)\b", ("I thought so. Tell me more.", "Good. And then?")),
        (r"^(?:no|nope|not really)\b", ("No? What would you say instead?", "All right. Why not?")),
        (r"^(?:hi|hello|hey|good (?:morning|evening|afternoon))\b",
         ("Hello! What shall we talk about?", "Hi there. How is your day going?")),
        (r"^(?:what|why|how|when|where|which)\b[^?]*\?",
         ("Good question. What is your own guess?", "I wonder myself. What do you think?")),
        (r"\?\s*$", ("Hm, what do you think?", "Let me turn that around: what would you say?")),
    )
)  # fmt: skip
_MADE = r"are you (?:a |an )?(?:real|human|robot|machine|person|computer)\b"
_HUMAN = re.compile(_MADE, re.IGNORECASE)
_SELF = re.compile(
    r"\bwho are you\b|\bwhat(?:'s| is) your name\b|\btell me about (?:you|yourself)\b"
    rf"|\bwhat do you do\b|\b{_MADE}",
    re.IGNORECASE,
)
_ONWARD = (
    "Tell me more about that.",
    "I see. And how was that for you?",
    "Go on, I'm listening.",
    "That's interesting. What happened then?",
)
_CHECK_INS = ("Are you still there?", "Take your time. I'm here when you want to talk.")


class ScriptWriter:
    """A `Writer`."""

    name = "script"

    async def write(
        self, persona: Persona, history: Sequence[Line], cue: Cue
    ) -> AsyncIterator[str]:
        character = _Character.of(persona)
        turns = sum(line.party is Party.CHARACTER for line in history)
        match cue:
            case Greet(text=text):
                yield text
            case CheckIn():
                yield _CHECK_INS[turns % len(_CHECK_INS)]
            case _:
                heard = [line.text for line in history if line.party is Party.USER]
                yield _answer(character, heard[-1] if heard else "", turns)


def _answer(character: _Character, heard: str, turns: int) -> str:
    if match := _SELF.search(heard):
        made = _HUMAN.search(heard) is not None
        honest = "Not in the way you are: somebody made me up. " if made else ""
        return f"{honest}{character.introduction}{_fact(character, turns)} And you?"
    for pattern, answers in _RULES:
        if match := pattern.search(heard):
            parts = [_turned(part) for part in match.groups()]
            return _chosen(answers, heard, turns).format(*parts)
    aside = _fact(character, turns // 3).strip() if turns % 3 == 2 else ""
    onward = _chosen(_ONWARD, heard, turns)
    return f"{aside} {onward}".strip()


def _fact(character: _Character, turns: int) -> str:
    if not character.facts:
        return ""
    return f" I {character.facts[turns % len(character.facts)]}."


def _chosen(answers: Sequence[str], heard: str, turns: int) -> str:
    """One of them: the same for the same words at the same point, another later."""
    return answers[(sha256(heard.lower().encode()).digest()[0] + turns) % len(answers)]


def _turned(text: str) -> str:
    """As the other party says it: "my dog" is "your dog"."""
    words = [_TURNED.get(word.lower(), word) for word in text.split()]
    return " ".join(words).rstrip(",")


def _own(text: str) -> str:
    """What the instructions say of "you", as the character says it of itself."""
    turned = {"you": "I", "your": "my", "yourself": "myself", "you're": "I'm"}
    return " ".join(turned.get(word.lower(), word) for word in text.split()).rstrip(" ,")
