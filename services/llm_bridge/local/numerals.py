"""Numbers as people say them. Pure string work."""

from __future__ import annotations

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_YEARS = range(1100, 2100)


def in_words(number: str) -> str:
    """A number without sign, with or without decimals: `19.5` is "nineteen point five".

    Four digits that can be a year are read like one; very long numbers digit by digit.
    """
    whole, _, decimals = number.partition(".")
    if len(whole) > 12:
        spoken = _digits(whole)
    elif len(whole) == 4 and int(whole) in _YEARS and not decimals:
        spoken = _year(int(whole))
    else:
        spoken = _cardinal(int(whole))
    return f"{spoken} point {_digits(decimals)}" if decimals else spoken


def _cardinal(value: int) -> str:
    if value < 20:
        return _ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")
    scale, name = next(pair for pair in _SCALES if value >= pair[0])
    many, rest = divmod(value, scale)
    return f"{_cardinal(many)} {name}" + (f" {_cardinal(rest)}" if rest else "")


def _year(value: int) -> str:
    century, rest = divmod(value, 100)
    if value % 1000 < 10:
        return _cardinal(value)
    if not rest:
        return f"{_cardinal(century)} hundred"
    return f"{_cardinal(century)} {'oh ' if rest < 10 else ''}{_cardinal(rest)}"


def _digits(digits: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in digits)
