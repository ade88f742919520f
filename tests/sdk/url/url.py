"""Python's HTTP and WebSocket clients against a sprite's URL: url.py HTTP_PORT HTTPS_PORT CA_FILE HOST.

Prints "passed N checks".
"""

import asyncio
import sys

import httpx
import websockets

port, tls_port, ca, host = sys.argv[1:]
checks = 0


def check(claim: str, ok: object) -> None:
    global checks
    assert ok, claim
    checks += 1


with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Host": host}, timeout=30) as client:
    check("a keep-alive connection serves", client.get("/").text == "ok\n")
    check("and serves again", client.get("/").status_code == 200)
    check("an upload arrives whole", client.post("/upload", content=b"x" * 3_000_000).json()["length"] == 3_000_000)

    def chunks():
        for _ in range(30):
            yield b"y" * 10_000

    check("a streamed one too", client.post("/upload", content=chunks()).json()["length"] == 300_000)
    check("a download comes whole", len(client.get("/download?bytes=4000000").content) == 4_000_000)
    with client.stream("GET", "/sse?ms=50") as events:
        lines = events.iter_lines()
        check("server-sent events come one by one", [next(lines) for _ in range(3)][0] == "id: 0")


async def chat() -> None:
    uri = f"ws://{host}:{port}/ws"
    async with websockets.connect(uri, host="127.0.0.1", port=int(port), max_size=None) as socket:
        await socket.send("hello")
        check("a WebSocket echoes text", await socket.recv() == "hello")
        await socket.send(b"\x07" * (1 << 20))
        check("and a megabyte", len(await socket.recv()) == 1 << 20)
        await (await socket.ping())
        check("and answers pings", True)


asyncio.run(chat())
print(f"passed {checks} checks")
