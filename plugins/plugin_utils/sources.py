"""A folder of ours on its way to a managed host: as an archive that is the same for the same files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

#: Zip files have no earlier time. The same for all, so that the same sources make the same archive.
_TIME = (1980, 1, 1, 0, 0, 0)


def archive(folder: Path, parts: Sequence[str]) -> bytes:
    """The files that match `parts` (glob patterns below `folder`), as a zip file.

    Not compressed: the result would depend on the release of zlib, and images are named by it.
    """
    files = {file for part in parts for file in folder.glob(part) if file.is_file()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for file in sorted(files):
            if "__pycache__" not in file.parts:
                target.writestr(zipfile.ZipInfo(str(file.relative_to(folder)), _TIME), file.read_bytes())
    return buffer.getvalue()
