"""The error of the data layer."""

from segue.errors import UserError


class DataError(UserError, ValueError):
    """Data that cannot be used; the text is one line naming file, column, row and remedy, as far as they apply."""
