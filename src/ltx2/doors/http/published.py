"""Opening published files: only plain files, at the place where the shelf put them, behind no symbolic link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ltx2.doors.http.refusals import Gone

FOLDERS = 2  # <number>/<attempt> under the shelf


def open_published(path: Path) -> int:
    """A descriptor of a published file, for reading; whoever asks closes it.

    Neither the file nor the folders of its job may be links: a link that somebody planted leads nowhere.
    Raises Gone when it is not there, or is not a plain file.
    """
    root = path.parents[FOLDERS]
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in path.relative_to(root).parts[:-1]:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(path.name, flags, dir_fd=descriptor)
    except OSError:
        raise Gone("the files of this video are not there any more") from None
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise Gone("the files of this video are not there any more")
    return file
