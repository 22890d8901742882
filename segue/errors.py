"""Errors that are the user's to mend: the command line shows them as one line and exits with code 2."""


class UserError(Exception):
    """A mistake of the user's; its text is one line that says what is wrong and how to put it right."""
