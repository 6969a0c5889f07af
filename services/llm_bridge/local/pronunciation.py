"""English spelling as the symbols that Kokoro reads.

On the path: clauses → **pronunciation** → voice. Words are looked up in the lexicons that Kokoro
was trained with (misaki's, Apache-2.0: a checked one and a larger one); endings are added by the
rules of English; what is in neither is spelled by letter groups, badly but audibly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files

from services.llm_bridge.local.numerals import in_words

_TOKEN = re.compile(r"\d[\d,]*(?:\.\d+)?%?|[A-Za-z]+(?:['’][A-Za-z]+)*|[.,!?;:…—()\"“”]|-")
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|vs)\.")
_MARKS = {"…": "…", "-": " ", "(": ",", ")": ",", '"': "", "“": "", "”": "", ";": ",", ":": ","}
_VOWELS = "aeiouæɑɔəɛɜɪʊʌᵊAIOWYi"
_UNVOICED = "ptkfθ"
_HISSING = "szʃʒʧʤ"
_LETTER_GROUPS = (
    ("tion", "ʃən"), ("sion", "ʒən"), ("ough", "O"), ("igh", "I"), ("tch", "ʧ"), ("dge", "ʤ"),
    ("ch", "ʧ"), ("sh", "ʃ"), ("th", "θ"), ("ph", "f"), ("wh", "w"), ("ck", "k"), ("ng", "ŋ"),
    ("qu", "kw"), ("kn", "n"), ("wr", "ɹ"), ("ee", "i"), ("ea", "i"), ("oo", "u"), ("ou", "W"),
    ("ow", "O"), ("oi", "Y"), ("oy", "Y"), ("ai", "A"), ("ay", "A"), ("au", "ɔ"), ("aw", "ɔ"),
    ("er", "əɹ"), ("ar", "ɑɹ"), ("or", "ɔɹ"), ("ir", "ɜɹ"), ("ur", "ɜɹ"), ("x", "ks"),
)  # fmt: skip
_LETTERS = dict(zip("abcdefghijklmnopqrstuvwyz", "æbkdɛfɡhɪʤklmnɑpkɹstʌvwiz", strict=True))

Entry = str | dict[str, str | None]  # by part of speech where it matters


class Pronunciation:
    """How English words sound.

    Args:
        lexicons: the first one that knows a word is believed.
    """

    def __init__(self, *lexicons: Mapping[str, Entry]) -> None:
        self._lexicons = lexicons

    @classmethod
    def english(cls) -> Pronunciation:
        """With the lexicons of American English; 180,000 words, a quarter of a second."""
        data = files("misaki") / "data"
        names = ("us_gold.json", "us_silver.json")
        return cls(*(json.loads((data / name).read_text("utf-8")) for name in names))

    def symbols(self, text: str) -> str:
        """How `text` sounds, marks of punctuation included."""
        spoken = ""
        text = _ABBREVIATION.sub(r"\1", text)
        tokens = [token for found in _TOKEN.findall(text) for token in _words(found)]
        for index, token in enumerate(tokens):
            if token[0].isalpha():
                following = tokens[index + 1] if index + 1 < len(tokens) else ""
                spoken += f" {self._word(token, following)}"
            else:
                spoken = spoken.rstrip() + _MARKS.get(token, token)
        return spoken.strip()

    def _word(self, word: str, following: str) -> str:
        word = word.replace("’", "'")
        match word.lower():
            case "a":
                return "ɐ"
            case "the":
                vowel = (self._known(following) or "b").lstrip("ˈˌ")[:1] in _VOWELS
                return "ði" if vowel else "ðə"
        return self._known(word) or self._derived(word.lower()) or self._spelled(word)

    def _known(self, word: str) -> str:
        for form in (word, word.lower(), word.capitalize()):
            for lexicon in self._lexicons:
                entry = lexicon.get(form)
                if isinstance(entry, dict):
                    entry = entry.get("DEFAULT")
                if entry:
                    return entry
        return ""

    def _derived(self, word: str) -> str:
        """A known word with an ending."""
        for ending, stems in (
            ("'s", ("",)), ("s", ("",)), ("es", ("", "e")), ("ies", ("y",)), ("ed", ("", "e")),
            ("ied", ("y",)), ("ing", ("", "e")), ("ly", ("",)), ("ness", ("",)), ("less", ("",)),
            ("ful", ("",)), ("er", ("", "e")), ("est", ("", "e")), ("'ll", ("",)), ("'d", ("",)),
        ):  # fmt: skip
            stem = word.removesuffix(ending)
            if stem == word or len(stem) < 2:
                continue
            undoubled = (stem[:-1],) if stem[-1] == stem[-2] else ()
            for base in (*(stem + added for added in stems), *undoubled):
                if sound := self._known(base):
                    return sound + _ending(ending, sound)
        return ""

    def _spelled(self, word: str) -> str:
        if word.isupper() and len(word) <= 5:  # an abbreviation: letter by letter
            return " ".join(
                self._known(letter) or _LETTERS.get(letter.lower(), "") for letter in word
            )
        word = word.lower().replace("'", "")
        if len(word) > 3 and word[-1] == "e":
            word = word[:-1]
        sound = ""
        while word:
            group, spoken = next(
                (pair for pair in _LETTER_GROUPS if word.startswith(pair[0])),
                (word[0], _LETTERS.get(word[0], "")),
            )
            word = word[len(group) :]
            sound += "" if sound.endswith(spoken) else spoken
        vowel = next((place for place, symbol in enumerate(sound) if symbol in _VOWELS), 0)
        return f"{sound[:vowel]}ˈ{sound[vowel:]}"


def _ending(ending: str, sound: str) -> str:
    last = sound[-1]
    match ending:
        case "'s" | "s" | "es" | "ies":
            return "ᵻz" if last in _HISSING else "s" if last in _UNVOICED else "z"
        case "ed" | "ied":
            return "ᵻd" if last in "td" else "t" if last in _UNVOICED + "sʃʧ" else "d"
        case "ing":
            return "ɪŋ"
        case "ly":
            return "li"
        case "ness":
            return "nəs"
        case "less":
            return "ləs"
        case "ful":
            return "fəl"
        case "er":
            return "əɹ"
        case "est":
            return "ᵻst"
        case "'ll":
            return "ᵊl"
        case _:
            return "d"


def _words(token: str) -> list[str]:
    if not token[0].isdigit():
        return [token]
    percent = ["percent"] if token.endswith("%") else []
    return [*in_words(token.rstrip("%").replace(",", "")).split(), *percent]
