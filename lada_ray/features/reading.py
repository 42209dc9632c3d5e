"""Reading image files from storage that stumbles now and then."""

from __future__ import annotations

import errno
import time

from lada_ray.domains.base import read_bytes

# What network file systems raise for a while when a server restarts or a link is busy. (Object stores retry on
# their own.)
TRANSIENT = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.EREMOTEIO, errno.ENOLINK, errno.ENFILE, errno.EMFILE),
)
# Seconds to wait before each further try.
WAITS = (0.1, 0.5, 2.0)


def read_image(uri: str) -> bytes:
    """The bytes of one image, tried again a few times when reading fails in a way that may pass.

    Raises:
        OSError: as `read_bytes`, and after the last try.
        LadaError: from an object store, which retries on its own.
    """
    for wait in WAITS:
        try:
            return read_bytes(uri)
        except OSError as error:
            if not (error.errno in TRANSIENT or isinstance(error, TimeoutError | ConnectionError)):
                raise
            time.sleep(wait)
    return read_bytes(uri)


def why_unread(error: Exception) -> str:
    """The reason that is listed for a file that cannot be read."""
    return f"cannot be read: {error}"
