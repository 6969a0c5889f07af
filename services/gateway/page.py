"""The page and its files, read once: what a browser needs to call, and what it may do with it.

Beside the path: http_api → **page**. The files are in `web/`; there is no build step.
"""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

from aiohttp import web

_FOLDER = Path(__file__).with_name("web")
_INDEX = "index.html"
# Scripts, styles and connections of our own alone; pictures also of what the page itself holds.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # asked for again each time, and answered with 304
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "microphone=(self), camera=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_KINDS = {".js": "text/javascript", ".svg": "image/svg+xml", ".webmanifest": "application/json"}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    kind: str
    tag: str


def _files() -> dict[str, _File]:
    return {
        path.relative_to(_FOLDER).as_posix(): _read(path)
        for path in sorted(_FOLDER.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _read(path: Path) -> _File:
    content = path.read_bytes()
    kind = _KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    return _File(content, kind or "application/octet-stream", sha256(content).hexdigest()[:16])


@dataclass(frozen=True)
class Page:
    """Serves the files there were when it was made."""

    files: dict[str, _File] = field(default_factory=_files)

    def add_to(self, app: web.Application) -> None:
        if _INDEX in self.files:
            app.router.add_get("/", partial(self._send, _INDEX))
        app.router.add_get("/web/{path:.+}", self._named)

    async def _named(self, request: web.Request) -> web.Response:
        return await self._send(request.match_info["path"], request)

    async def _send(self, name: str, request: web.Request) -> web.Response:
        file = self.files.get(name)
        if file is None:
            raise web.HTTPNotFound
        headers = _HEADERS | {"ETag": f'"{file.tag}"'}
        if any(tag.value == file.tag for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        text = file.kind.startswith("text/") or file.kind.endswith(("json", "svg+xml"))
        charset = "utf-8" if text else None
        return web.Response(
            body=file.content, content_type=file.kind, charset=charset, headers=headers
        )
