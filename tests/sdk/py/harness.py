"""What all areas share: counted checks, and a record of which public methods were called."""

import functools
import inspect
import time

import sprites
import sprites.exec
import sprites.session

checks = 0
called: set[str] = set()

CLASSES = [
    sprites.SpritesClient, sprites.AsyncSpritesClient, sprites.Sprite, sprites.AsyncSprite,
    sprites.SpriteFilesystem, sprites.AsyncSpriteFilesystem, sprites.SpritePath, sprites.AsyncSpritePath,
    sprites.AsyncCmd, sprites.exec.Cmd, sprites.session.KillStream, sprites.services.ServiceStream,
    sprites.ControlConnection, sprites.OpConn,
]
FUNCTIONS = [(sprites.session, name) for name in ("list_sessions", "kill_session")]


def check(claim: str, ok: object) -> None:
    global checks
    assert ok, claim
    checks += 1


def equal(claim: str, found: object, expected: object) -> None:
    check(f"{claim}: {found!r}, not {expected!r}", found == expected)


async def go(value):
    """The result of a call of either surface."""
    return await value if inspect.isawaitable(value) else value


async def collect(values) -> list:
    if inspect.isawaitable(values):
        values = await values
    return [value async for value in values] if hasattr(values, "__aiter__") else list(values)


async def refused(claim: str, error, call, has=None) -> None:
    try:
        await go(call())
    except error as found:
        check(f"{claim}: {found!r}", has is None or has(found))
        return
    raise AssertionError(claim)


async def eventually(claim: str, condition, limit: float = 30.0) -> None:
    deadline = time.monotonic() + limit
    while not await go(condition()):
        assert time.monotonic() < deadline, f"not within {limit} s: {claim}"
        time.sleep(0.02)
    check(claim, True)


def members(owner: type) -> list[str]:
    return [name for name, value in inspect.getmembers(owner, callable) if not name.startswith("_") and not isinstance(value, type)]


def public_methods() -> list[str]:
    methods = [f"{owner.__name__}.{name}" for owner in CLASSES for name in members(owner)]
    return sorted(methods + [name for _, name in FUNCTIONS])


def watch_calls() -> None:
    """Wraps each public method at run time; nothing of the package is changed."""

    def noted(name: str, original):
        @functools.wraps(original)
        def call(*args, **kwargs):
            called.add(name)
            return original(*args, **kwargs)

        return call

    for owner in CLASSES:
        for name in members(owner):
            original = inspect.getattr_static(owner, name)
            if isinstance(original, (staticmethod, classmethod)):
                continue
            setattr(owner, name, noted(f"{owner.__name__}.{name}", original))
    for module, name in FUNCTIONS:
        setattr(module, name, noted(name, getattr(module, name)))
