"""Exceptions that say where they came from, whatever is wrapped around them on their way."""

from collections.abc import Iterator


def add_note(error: BaseException, note: str) -> None:
    """Add a line to what an exception says (``BaseException.add_note`` of Python 3.11)."""
    error.__notes__ = [*notes(error), note]  # type: ignore[attr-defined]


def notes(error: BaseException) -> list[str]:
    """Return the lines that were added to an exception."""
    return list(getattr(error, "__notes__", []))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, then the one that it was raised from, and so on to the first."""
    while True:
        yield error
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            return
        error = before


def noted(error: BaseException) -> BaseException:
    """Return the first exception of a chain of causes that has a note; without one, the last.

    Whoever noted where an exception happened saw the one that counts; libraries wrap it later.
    """
    return [error, *(cause for cause in causes(error) if notes(cause))][-1]
