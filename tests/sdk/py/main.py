"""Drives the published sprites-py, unmodified, over both its surfaces: main.py BASE_URL TOKEN COMPATIBILITY.md.

Prints "passed N checks".
"""

import asyncio
import pathlib
import re
import sys
import time
import traceback

import areas
import harness
from sprites import AsyncSpritesClient, SpritesClient

base_url, token, table = sys.argv[1:]
# What can't be called here, and why: see docs/compatibility.md.
EXCUSED = re.compile(
    r"(ControlConnection|OpConn)\."  # there are no control connections
    r"|\w+\.create_token$"  # it asks the vendor's host, or needs a login of the vendor's
)


class Make:
    """Makes clients of one of the surfaces."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __call__(self, other: str = token, **more: object):
        return self.kind(other, base_url=base_url, **more)

    @staticmethod
    def plain() -> SpritesClient:
        return SpritesClient(token, base_url=base_url)


async def surface(kind: type, failures: list[str]) -> None:
    make = Make(kind)
    client, name = make(), f"py-{time.time_ns()}"
    for area in (areas.sprites, areas.commands, areas.sessions, areas.files, areas.services, areas.checkpoints, areas.later, areas.control):
        before, began = harness.checks, time.monotonic()
        label = f"{kind.__name__} {area.__name__}"
        try:
            await asyncio.wait_for(area(client, name, make), 120)
            print(f"{label}: {harness.checks - before} checks, {time.monotonic() - began:.1f} s")
        except Exception:
            failures.append(label)
            print(f"{label}, after {harness.checks - before} checks:\n{traceback.format_exc()}", file=sys.stderr)
    await harness.go(client.sprite(name).destroy())
    await harness.go(getattr(client, "aclose", getattr(client, "close", None))())


async def main() -> None:
    failures: list[str] = []
    harness.watch_calls()
    for kind in (SpritesClient, AsyncSpritesClient):
        await surface(kind, failures)
    if not failures:
        missed = [name for name in harness.public_methods() if name not in harness.called and not EXCUSED.match(name)]
        if missed:
            failures.append("coverage")
            print("never called:", ", ".join(missed), file=sys.stderr)
    documented = pathlib.Path(table).read_text()
    silent = [name for name in harness.public_methods() if f"`{name}`" not in documented]
    if silent:
        failures.append("documentation")
        print("not in the table:", ", ".join(silent), file=sys.stderr)
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")
    print(f"passed {harness.checks} checks")


asyncio.run(main())
