"""The areas, each for the plain and for the asynchronous surface: their methods have the same names."""

import contextlib
import io
import threading

from sprites import ExecError, session
from sprites.exceptions import APIError, AuthenticationError, FileNotFoundError_, FilesystemError, NotFoundError, SpriteError
from sprites.types import ListOptions, NetworkPolicy, PolicyRule, SpriteConfig, URLSettings

from harness import check, collect, equal, eventually, go, refused


async def sprites(client, name, make):
    made = await go(client.create_sprite(name, SpriteConfig(ram_mb=512), URLSettings(auth="sprite"), ["sdk"], True, "dev"))
    equal("create names the sprite", made.name, name)
    await refused("a taken name is refused", SpriteError, lambda: client.create_sprite(name))
    await refused("an unknown sprite is not found", NotFoundError, lambda: client.get_sprite("no-such-sprite"))
    got = await go(client.get_sprite(name))
    equal("a new sprite is cold, with its labels", (got.status, got.labels), ("cold", ["sdk"]))
    for n in range(3):
        await go(client.create_sprite(f"{name}-{n}"))
    page = await go(client.list_sprites(ListOptions(prefix=name, max_results=2)))
    check("a page has as many as asked for", len(page.sprites) == 2 and page.has_more)
    equal("all pages together have all", len(await go(client.list_all_sprites(name))), 4)
    await go(client.update_url_settings(name, URLSettings(auth="public")))
    equal("settings change", (await go(client.get_sprite(name))).url_settings.auth, "public")
    await go(client.update_sprite(name, labels=["a"]))
    sprite = client.sprite(name)
    await go(sprite.update_url_settings(URLSettings(auth="sprite")))
    await go(sprite.update(labels=["b"]))
    got = await go(client.get_sprite(name))
    equal("from the sprite, too", (got.url_settings.auth, got.labels), ("sprite", ["b"]))
    await go(client.delete_sprite(f"{name}-0"))
    await go(client.destroy_sprite(f"{name}-1"))
    await go(client.sprite(f"{name}-2").delete())
    await refused("a destroyed sprite is gone at once", NotFoundError, lambda: client.get_sprite(f"{name}-0"))
    stranger = make("acme/xxxxx/none/spr_none")
    await refused("a wrong token is refused", AuthenticationError, lambda: stranger.get_sprite(name))
    await go(getattr(stranger, "aclose", getattr(stranger, "close", None))())
    answer = await go(client.http_client.get(f"{client.base_url}/v1/organization"))
    equal("the client's own HTTP is authorized", answer.json()["organization"]["slug"], "acme")


async def commands(client, name, make):
    sprite = client.sprite(name)
    run = lambda line, **more: go(sprite.run("sh", "-c", line, capture_output=True, timeout=60, **more))
    both = await run("echo out; echo err >&2")
    equal("stdout and stderr are apart", (both.returncode, both.stdout, both.stderr), (0, b"out\n", b"err\n"))
    equal("the code", (await run("exit 7")).returncode, 7)
    await refused("check=True raises", ExecError, lambda: sprite.run("sh", "-c", "exit 3", check=True), lambda error: error.exit_code() == 3)
    equal("env and cwd", (await run("echo $A; pwd", env={"A": "x=1 ü"}, cwd="/tmp")).stdout.decode(), "x=1 ü\n/tmp\n")
    equal("output()", await go(sprite.command("echo", "a b", "*").output()), b"a b *\n")
    check("combined_output()", set((await go(sprite.command("sh", "-c", "echo o; echo e >&2").combined_output())).split()) == {b"o", b"e"})
    out, errors = io.BytesIO(), io.BytesIO()
    await go(sprite.command("cat", stdin=io.BytesIO(b"given" * 100_000), stdout=out, stderr=errors).run())
    equal("stdin goes in and comes back", (len(out.getvalue()), errors.getvalue()), (500_000, b""))
    await refused("run() raises", ExecError, lambda: sprite.command("false").run())
    equal("an unknown program is 127", (await go(sprite.run("no-such-program"))).returncode, 127)
    equal("a signal is 128 and its number", (await run("kill -9 $$")).returncode, 137)
    terminal = sprite.command("sh", "-c", "tty; stty size; exit 4")
    terminal.set_tty(True)
    terminal.set_tty_size(33, 101)
    sink = io.BytesIO()
    terminal.stdout = sink
    await refused("a terminal's code", ExecError, terminal.run, lambda error: error.exit_code() == 4)
    check("its size and its output", b"33 101" in sink.getvalue() and b"/dev/pts/" in sink.getvalue())
    await refused("a timeout", Exception, lambda: sprite.run("sleep", "100", timeout=0.5))


async def sessions(client, name, make):
    sprite = client.sprite(name)

    async def find(mark):
        return next((found for found in await go(sprite.list_sessions()) if mark in found.command), None)

    # The package's commands wait for their end, so one is started beside this one, with its own client.
    plain = make.plain()

    def start():
        with contextlib.suppress(Exception):
            plain.sprite(name).run("sh", "-c", "echo attached-to; read line; echo got $line; exit 0", tty=True, timeout=60)

    beside = threading.Thread(target=start)
    beside.start()
    await eventually("a session is listed", lambda: find("attached-to"))
    found = await find("attached-to")
    check("with what is known of it", found.tty and found.id and "/home" in found.workdir)
    attached = sprite.attach_session(found.id, timeout=60)
    seen = io.BytesIO()
    attached.stdin, attached.stdout = io.BytesIO(b"word\n"), seen
    await go(attached.run())
    check("replayed, and typed into", b"attached-to" in seen.getvalue() and b"got word" in seen.getvalue())
    beside.join()

    beside = threading.Thread(target=lambda: plain.sprite(name).run("sh", "-c", "trap '' TERM; echo killed-by; while :; do sleep 1; done", timeout=60))
    beside.start()
    await eventually("another one", lambda: find("killed-by"))
    victim = plain.sprite(name)
    found = next(each.id for each in session.list_sessions(victim) if "killed-by" in each.command)
    stream = session.kill_session(victim, found, "SIGTERM", 1)
    steps = list(stream)
    check("a kill is told step by step", steps[0].type == "signal" and steps[-1].type == "complete" and steps[0].data)
    types: list[str] = []
    stream.process_all(lambda step: types.append(step.type))
    check("what ignores TERM is killed", "killed" in types)
    stream.close()
    beside.join()
    await refused("a dead session can't be killed", APIError, lambda: session.kill_session(victim, found), lambda error: error.status_code in (404, 410))
    await refused("nor attached to", Exception, lambda: sprite.attach_session(found, timeout=10).run())
    plain.close()


async def files(client, name, make):
    sprite = client.sprite(name)
    fs = sprite.filesystem("/home/sprite")
    path = fs / "py" / "a.txt"
    await go(path.write_text("hällo", mode=0o640))
    equal("what is written is read", await go(path.read_text()), "hällo")
    stat = await go(path.stat())
    check("stat", stat.size == 6 and stat.is_file and not stat.is_dir)
    body = bytes(range(256)) * 4096
    await go((fs / "py/big").write_bytes(body))
    check("a megabyte comes back", await go((fs / "py/big").read_bytes()) == body)
    equal("exists", [await go(path.exists()), await go((fs / "none").exists())], [True, False])
    equal("is_file, is_dir", [await go(path.is_file()), await go(path.is_dir()), await go((fs / "py").exists())], [True, False, True])
    equal("iterdir", sorted(entry.name for entry in await collect(path.parent.iterdir())), ["a.txt", "big"])
    equal("listdir", sorted(await go(path.parent.listdir())), ["a.txt", "big"])
    await refused("a file that is not there", FileNotFoundError_, lambda: (fs / "none").read_text())
    await go((fs / "py/d/e").mkdir(parents=True))
    # A directory is what its first child is: the package asks for a list and takes the first entry.
    check("is_dir", await go((fs / "py/d").is_dir()))
    check("mkdir", "e" in await go((fs / "py/d").listdir()))
    moved = await go(path.rename("/home/sprite/py/b.txt"))
    equal("rename", await go(moved.read_text()), "hällo")
    again = await go(moved.replace("/home/sprite/py/c.txt"))
    copy = await go(again.copy_to("/home/sprite/py/d/copy.txt"))
    equal("replace and copy_to", await go(copy.read_text()), "hällo")
    await go(again.chmod(0o600))
    equal("chmod", int(str((await go(again.stat())).mode), 8) if isinstance((await go(again.stat())).mode, str) else (await go(again.stat())).mode & 0o777, 0o600)
    await go((fs / "py/t").touch())
    check("touch", await go((fs / "py/t").exists()))
    await go((fs / "py/t").unlink())
    await go((fs / "py/t").unlink(missing_ok=True))
    await refused("a directory with content is kept", (FilesystemError, OSError), lambda: (fs / "py").rmdir())
    await go((fs / "py/d/e").rmdir())
    await go((fs / "py").rmtree())
    check("rmtree", not await go((fs / "py").exists()))

    plain = fs.path("x", "y.tar.gz")
    equal("paths are like pathlib's", (plain.name, plain.stem, plain.suffix, plain.suffixes), ("y.tar.gz", "y.tar", ".gz", [".tar", ".gz"]))
    check("in all their parts", plain.is_absolute() and plain.is_relative_to("/home") and plain.parts and plain.parents)
    equal("and changes", [str(plain.with_name("z")), str(plain.with_stem("z")), str(plain.with_suffix(".x")), str(plain.parent.joinpath("q"))],
          ["/home/sprite/x/z", "/home/sprite/x/z.gz", "/home/sprite/x/y.tar.x", "/home/sprite/x/q"])
    check("relative_to", str(plain.relative_to("/home/sprite")).endswith("x/y.tar.gz") and str(fs.root) == "/" and str(fs.cwd) == "/home/sprite")


async def services(client, name, make):
    sprite = client.sprite(name)
    equal("a new sprite has no services", await go(sprite.list_services()), [])
    stream = await go(sprite.create_service("web", "/bin/sh", ["-c", "echo up; exec sleep 1000"], http_port=8080, duration=1.0, env={"A": "b"}, dir="/tmp"))
    events = list(stream)
    check("creating streams the start and its end", "started" in [event.type for event in events] and events[-1].type == "complete")
    check("and the output", any(event.type == "stdout" and "up" in event.data for event in events))
    seen: list[str] = []
    stream.process_all(lambda event: seen.append(event.type))
    check("once more", seen)
    stream.close()
    service = await go(sprite.get_service("web"))
    equal("it runs", (service.state.status, service.http_port), ("running", 8080))
    list(await go(sprite.stop_service("web", timeout=5.0)))
    equal("it stops", (await go(sprite.get_service("web"))).state.status, "stopped")
    list(await go(sprite.start_service("web", duration=0.5)))
    equal("and starts", (await go(sprite.get_service("web"))).state.status, "running")
    await go(sprite.signal_service("web", "TERM"))
    await refused("an unknown service is not found", Exception, lambda: sprite.get_service("nope"))
    await go(sprite.delete_service("web"))
    equal("deleted services are gone", await go(sprite.list_services()), [])


async def checkpoints(client, name, make):
    sprite = client.sprite(name)
    path = sprite.filesystem("/home/sprite") / "checkpointed"
    equal("a new sprite has no checkpoints", await go(sprite.list_checkpoints()), [])
    await go(path.write_text("one"))
    told = await collect_or_go(sprite.create_checkpoint("the first"))
    check("taking one is told step by step", told[0].type == "info" and told[-1].type == "complete" and "v0" in told[-1].data)
    await go(path.write_text("two"))
    await collect_or_go(sprite.create_checkpoint())
    listed = await go(sprite.list_checkpoints())
    equal("both are listed, the oldest first", [(one.id, one.comment or "") for one in listed], [("v0", "the first"), ("v1", "")])
    check("with the times at which they were taken", listed[0].create_time <= listed[1].create_time and listed[0].create_time.tzinfo)
    equal("what descends from one", [one.id for one in await go(sprite.list_checkpoints("v1"))], ["v1"])
    one = await go(sprite.get_checkpoint("v1"))
    equal("one can be read", (one.id, one.history), ("v1", ["v0"]))
    await refused("an unknown one is not found", Exception, lambda: sprite.get_checkpoint("v9"), lambda error: "404" in str(error) or "not found" in str(error).lower())
    await refused("nor can it be restored", Exception, lambda: collect_or_go(sprite.restore_checkpoint("v9")))
    await go(path.write_text("three"))
    told = await collect_or_go(sprite.restore_checkpoint("v0"))
    equal("a restore is told, too", told[-1].type, "complete")
    equal("the disk is as it was", await go(path.read_text()), "one")


async def later(client, name, make):
    sprite = client.sprite(name)
    not_yet = lambda error: "501" in str(error) or "not offer" in str(error) or getattr(error, "status_code", 0) == 501
    for what, call in {
        "get_network_policy": sprite.get_network_policy,
        "update_network_policy": lambda: sprite.update_network_policy(NetworkPolicy(rules=[PolicyRule(domain="*", action="allow")])),
    }.items():
        await refused(f"{what} says that it comes later", Exception, lambda: collect_or_go(call()), not_yet)
    for call in (sprite.upgrade, lambda: client.upgrade_sprite(name)):
        try:
            await go(call())
        except SpriteError as error:
            check(f"upgrade says that it comes later: {error}", not_yet(error))


async def collect_or_go(value):
    value = await go(value)
    return list(value) if hasattr(value, "__next__") else value


async def control(client, name, make):
    controlled = make(control_mode=True)
    sprite = controlled.sprite(name)
    check("control is asked for", sprite.use_control_mode())
    equal("and a command runs all the same", (await go(sprite.run("echo", "plain", capture_output=True))).stdout, b"plain\n")
    await refused("as there is no control connection", Exception, sprite.get_control_connection)
    check("none is kept", not sprite.has_control_connection())
    await sprite.close_control_connection()
    await go(getattr(controlled, "aclose", getattr(controlled, "close", None))())
