"""Drives the published sprites-py, unmodified: client.py BASE_URL TOKEN. Prints "passed N checks"."""

import sys
import time

from sprites import SpritesClient
from sprites.exceptions import AuthenticationError, NotFoundError, SpriteError
from sprites.types import ListOptions, URLSettings

base_url, token = sys.argv[1:]
client = SpritesClient(token, base_url=base_url)
checks = 0


def check(claim: str, ok: object) -> None:
    global checks
    assert ok, claim
    checks += 1


def refused(claim: str, error: type, call) -> None:
    global checks
    try:
        call()
    except error:
        checks += 1
        return
    raise AssertionError(claim)


name = f"py-{time.time_ns()}"
check("create names the sprite", client.create_sprite(name).name == name)
refused("a taken name is refused", SpriteError, lambda: client.create_sprite(name))
refused("an unknown sprite is not found", NotFoundError, lambda: client.get_sprite("no-such-sprite"))

for n in range(3):
    client.create_sprite(f"{name}-{n}")
page = client.list_sprites(ListOptions(prefix=name, max_results=2))
check("a page has as many as asked for", len(page.sprites) == 2 and page.has_more)
check("all pages together have all", len(client.list_all_sprites(name)) == 4)

client.update_url_settings(name, URLSettings(auth="public"))
sprite = client.get_sprite(name)
check("settings change", sprite.url_settings.auth == "public")

sprite = client.sprite(name)
check("a new sprite has no services", sprite.list_services() == [])
events = list(sprite.create_service("web", cmd="/bin/sh", args=["-c", "echo up; exec sleep 1000"], http_port=8080, duration=1.0))
types = [event.type for event in events]
check("creating streams the start and its end", "started" in types and types[-1] == "complete")
check("and the output", any(event.type == "stdout" and "up" in event.data for event in events))
service = sprite.get_service("web")
check("it runs", service.state.status == "running" and service.http_port == 8080)
list(sprite.stop_service("web", timeout=5.0))
check("it stops", sprite.get_service("web").state.status == "stopped")
list(sprite.start_service("web", duration=0.5))
check("and starts", sprite.get_service("web").state.status == "running")
sprite.signal_service("web", "TERM")
refused("an unknown service is not found", Exception, lambda: sprite.get_service("nope"))
sprite.delete_service("web")
check("deleted services are gone", sprite.list_services() == [])

stranger = SpritesClient("acme/xxxxx/none/spr_none", base_url=base_url)
refused("a wrong token is refused", AuthenticationError, lambda: stranger.get_sprite(name))

for n in range(3):
    client.delete_sprite(f"{name}-{n}")
sprite.delete()
refused("a destroyed sprite is gone at once", NotFoundError, lambda: client.get_sprite(name))
print(f"passed {checks} checks")
