"""Files that are named by what they hold, wherever the operator keeps them.

Beside the path: avatars → **blobs** → a folder, S3, GCS (any URL that fsspec knows). A tenant's
blobs are under its own folder, so that deleting an avatar needs to look at no other tenant.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import sha256
from typing import Any
from uuid import uuid4

import fsspec

from talkingmachines.errors import NotFound, Unavailable

_RETRY_SECONDS = 5.0


class Blobs:
    """Blobs below a URL. File systems of fsspec block, so they are called on worker threads."""

    def __init__(self, url: str, **options: Any) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url, **options)

    async def put(self, tenant: str, kind: str, content: bytes) -> str:
        """Store `content`; returns its digest.

        Raises:
            Unavailable: the storage does not answer.
        """
        digest = sha256(content).hexdigest()
        await self._do(self._write, self._path(tenant, kind, digest), content)
        return digest

    async def get(self, tenant: str, kind: str, digest: str) -> bytes:
        """What was stored.

        Raises:
            NotFound: nothing was, or it was deleted.
            Unavailable: the storage does not answer.
        """
        content: bytes = await self._do(self._files.cat_file, self._path(tenant, kind, digest))
        return content

    async def delete(self, tenant: str, kind: str, digest: str) -> None:
        """Remove it; already being gone is no error."""
        with suppress(NotFound):
            await self._do(self._files.rm_file, self._path(tenant, kind, digest))

    def _path(self, tenant: str, kind: str, digest: str) -> str:
        # Tenants are named by whoever issues tokens: their names are not trusted as paths.
        return f"{self._root}/{sha256(tenant.encode()).hexdigest()[:32]}/{kind}/{digest}"

    def _write(self, path: str, content: bytes) -> None:
        if self._files.exists(path):
            return
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        # Under another name first: whoever finds the blob finds the whole of it.
        part = f"{path}.{uuid4().hex}.part"
        self._files.pipe_file(part, content)
        self._files.mv(part, path)

    async def _do(self, call: Any, *args: Any) -> Any:
        try:
            return await asyncio.to_thread(call, *args)
        except FileNotFoundError:
            raise NotFound("blob", args[0].rpartition("/")[2]) from None
        except OSError as error:
            raise Unavailable("the avatar storage fails", retry_after=_RETRY_SECONDS) from error
