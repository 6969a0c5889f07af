"""Why the fleet does not start: one line for a person, with what to do about it."""


class CannotStart(Exception):
    """Something that the fleet needs is missing, taken or broken."""
