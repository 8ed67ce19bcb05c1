"""Errors of a disk that takes no more.

Libraries quote the reason in messages of their own, and a write that fails does not say which file it was.
"""

from collections.abc import Iterator
import contextlib
import errno
import os

# A disk, or a user's share of it, without room.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REASONS = tuple(os.strerror(code) for code in (*_FULL, errno.EROFS, errno.EFBIG, errno.EIO))


def reason(error: BaseException | None) -> str | None:
    """Returns why the operating system refused a write, in its words; None if it is not that.

    Args:
      error: of the operating system, or of a library that quotes or wraps one.
    """
    causes = list(causes_of(error))
    quoted = next((reason for reason in _REASONS for cause in causes if reason in str(cause)), None)
    own = (cause.strerror or str(cause) for cause in causes if isinstance(cause, OSError))
    return quoted or next(own, None)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and all that it came from."""
    while error is not None:
        yield error
        for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            yield from causes_of(part)
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def naming(path: str | os.PathLike, fix: str = 'make room, and run the same command again') -> Iterator[None]:
    """Has an error of the operating system say which file or directory could not be written, and what helps.

    Args:
      path: what is written inside.
      fix: what helps where there is no room.

    Raises:
      OSError: the one raised inside, with a path unless it has one and the disk is not full.
    """
    try:
        yield
    except OSError as error:
        is_full = error.errno in _FULL
        if error.errno is None or (error.filename is not None and not is_full):
            raise
        words = os.strerror(error.errno)
        raise OSError(error.errno, f'{words}; {fix}' if is_full else words, os.fspath(path)) from error
