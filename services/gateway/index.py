"""The list of avatars in Redis: by id, and in the order of their names.

Beside the path: avatars → **index** → Redis. A tenant's avatars share a hash tag, and no key holds
two tenants.
"""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from binascii import Error as BadBase64
from typing import Any

from services.gateway.store import Script, Store
from talkingmachines.errors import BadInput, QuotaExceeded
from talkingmachines.v1 import storage_pb2

_ONCE_SECONDS = 24 * 3600

# KEYS: avatars, names, once. ARGV: id, record, name, most, seconds. Returns the id that counts.
_ADD = Script("""
local once = redis.call('GET', KEYS[3])
if once and redis.call('HEXISTS', KEYS[1], once) == 1 then return once end
local new = redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0
if new and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return false end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[3])
if KEYS[3] ~= KEYS[1] .. ':once:' then redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[5]) end
return ARGV[1]
""")

# KEYS: avatars, names. ARGV: id, name.
_REMOVE = Script("""
redis.call('ZREM', KEYS[2], ARGV[2])
return redis.call('HDEL', KEYS[1], ARGV[1])
""")


class Index:
    """Avatars by tenant; the empty name is that of the shared ones."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self, tenant: str, record: storage_pb2.AvatarRecord, *, once: str, most: int
    ) -> str:
        """Put an avatar in, or in the place of the one with its id; returns the id.

        With a key `once` that was used within a day, the id that was put in then.

        Raises:
            QuotaExceeded: the tenant has `most` avatars.
        """
        avatars, names = _keys(tenant)
        avatar_id = record.avatar.avatar_id
        args = [avatar_id, record.SerializeToString(), _name(record), most, _ONCE_SECONDS]
        added = await self._store.run(_ADD, [avatars, names, f"{avatars}:once:{once}"], args)
        if added is None:
            raise QuotaExceeded("avatars", limit=str(most))
        return _text(added)

    async def find_once(self, tenant: str, once: str) -> str | None:
        """The id of the avatar that was put in with this key."""
        key = f"{_keys(tenant)[0]}:once:{once}"
        found = await self._store.do(lambda redis: redis.get(key))
        return None if found is None else _text(found)

    async def get(self, tenant: str, avatar_id: str) -> storage_pb2.AvatarRecord | None:
        avatars, _ = _keys(tenant)
        found = await self._store.do(lambda redis: redis.hget(avatars, avatar_id))
        return None if found is None else storage_pb2.AvatarRecord.FromString(found)

    async def all(self, tenant: str) -> list[storage_pb2.AvatarRecord]:
        """Every avatar of a tenant, in no order."""
        avatars, _ = _keys(tenant)
        found = await self._store.do(lambda redis: redis.hvals(avatars))
        return [storage_pb2.AvatarRecord.FromString(record) for record in found]

    async def count(self, tenant: str) -> int:
        avatars, _ = _keys(tenant)
        return int(await self._store.do(lambda redis: redis.hlen(avatars)))

    async def remove(self, tenant: str, record: storage_pb2.AvatarRecord) -> bool:
        """Whether it was there."""
        args = [record.avatar.avatar_id, _name(record)]
        return bool(await self._store.run(_REMOVE, _keys(tenant), args))

    async def page(
        self, tenants: tuple[str, ...], *, size: int, token: str
    ) -> tuple[list[storage_pb2.AvatarRecord], str]:
        """The next `size` avatars of these tenants by name, and the token of the page after.

        Raises:
            BadInput: the token is none of ours.
        """
        after = _decoded(token)
        found: list[tuple[bytes, str]] = []
        for tenant in tenants:
            low = b"-" if after is None else b"(" + after
            names = await self._range(_keys(tenant)[1], low, size + 1)
            found += [(name, tenant) for name in names]
        found.sort()
        records = [await self.get(tenant, _id(name)) for name, tenant in found[:size]]
        more = urlsafe_b64encode(found[size - 1][0]).decode() if len(found) > size else ""
        return [record for record in records if record is not None], more

    async def _range(self, key: str, low: bytes, most: int) -> list[bytes]:
        names: Any = await self._store.do(
            lambda redis: redis.zrangebylex(key, low, b"+", start=0, num=most)
        )
        return list(names)


def _keys(tenant: str) -> tuple[str, str]:
    # The tenant's name may hold anything, a closing brace included; the hash tag must not.
    tag = urlsafe_b64encode(tenant.encode()).decode().rstrip("=") or "shared="
    return f"tm:avatars:{{{tag}}}", f"tm:avatars:{{{tag}}}:names"


def _name(record: storage_pb2.AvatarRecord) -> bytes:
    """Sorts by display name without regard to case, and is unique."""
    return f"{record.avatar.display_name.casefold()}\0{record.avatar.avatar_id}".encode()


def _id(name: bytes) -> str:
    return name.rpartition(b"\0")[2].decode()


def _decoded(token: str) -> bytes | None:
    if not token:
        return None
    try:
        return b64decode(token, altchars=b"-_", validate=True)
    except (BadBase64, ValueError):
        raise BadInput("page_token", got=token[:100], expected="one of a list's response") from None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
