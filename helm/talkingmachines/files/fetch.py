"""Bring a folder of models from any URL that fsspec knows: fetch.py URL FOLDER.

What is there with the right size already is not fetched again; a file has its name only when it is
whole.
"""

import sys
from pathlib import Path

import fsspec


def fetch(url: str, folder: Path) -> int:
    """Copy all files below `url` to `folder`; returns how many bytes came."""
    files, root = fsspec.core.url_to_fs(url)
    fetched = 0
    found = files.find(root, detail=True)
    if not found:
        sys.exit(f"nothing is at {url}")
    for source, about in sorted(found.items()):
        target = folder / Path(source).relative_to(root)
        if target.exists() and target.stat().st_size == about["size"]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        print(f"{source}: {about['size']} bytes", flush=True)
        files.get_file(source, str(part))
        part.rename(target)
        fetched += about["size"]
    return fetched


if __name__ == "__main__":
    print(f"{fetch(sys.argv[1], Path(sys.argv[2]))} bytes fetched")
