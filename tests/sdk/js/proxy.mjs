// Tunnels into a sprite.
import net from 'node:net';
import { ProxyManager, ProxySession, proxyPort, proxyPorts } from '@fly/sprites';
import { check, equal, note, once } from './harness.mjs';

const SERVER = `
import socketserver, sys, threading, time
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            data = self.request.recv(65536)
            if not data: return
            self.request.sendall(data)
class Hello(socketserver.BaseRequestHandler):
    def handle(self):
        time.sleep(0.2) # the package listens for bytes only a moment after the reply
        self.request.sendall(b"hello and goodbye")
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer.daemon_threads = True
servers = [socketserver.ThreadingTCPServer(("127.0.0.1", int(port)), handler) for port, handler in ((sys.argv[1], Echo), (sys.argv[2], Hello))]
for server in servers: threading.Thread(target=server.serve_forever).start()
`;

async function free() {
  const server = net.createServer();
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  const { port } = server.address();
  await new Promise((resolve) => { server.close(resolve); });
  return port;
}

/** Sends, and reads until the other side ends or as much has come. */
function exchange(port, body, enough = Infinity) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, 'localhost');
    const parts = [];
    let length = 0;
    const done = () => { socket.destroy(); resolve(Buffer.concat(parts)); };
    socket.on('data', (part) => { parts.push(part); length += part.length; if (length >= enough) done(); });
    socket.on('end', done);
    socket.on('error', reject);
    if (body.length) socket.write(body);
  });
}

export default async function proxy({ client, name }) {
  const sprite = client.sprite(name);
  await sprite.filesystem('/home/sprite').writeFile('server.py', SERVER);
  const service = await sprite.createService('tunnel', { cmd: 'python3', args: ['/home/sprite/server.py', '7001', '7002'] }, '0s');
  await service.processAll(() => {});

  const echo = await sprite.proxyPort(await free(), 7001);
  check('it says where it listens', echo.localAddr().endsWith(`:${echo.localPort}`));
  await eventuallyUp(echo.localPort);
  equal('bytes come back', (await exchange(echo.localPort, Buffer.from('ping'), 4)).toString(), 'ping');
  const body = Buffer.alloc(4 << 20, 'tunnel ');
  check('4 MiB come back whole', body.equals(await exchange(echo.localPort, body, body.length)));
  const all = await Promise.all(Array.from({ length: 50 }, (_, n) => exchange(echo.localPort, Buffer.from(`n${n};`), `n${n};`.length)));
  check('fifty at once', all.every((answer, n) => answer.toString() === `n${n};`));

  const [a, b] = await sprite.proxyPorts([{ localPort: await free(), remotePort: 7001 }, { localPort: await free(), remotePort: 7002, remoteHost: '127.0.0.1' }]);
  equal('several ports', (await exchange(a.localPort, Buffer.from('x'), 1)).toString(), 'x');
  equal("the target's end is the local end", (await exchange(b.localPort, Buffer.alloc(0))).toString(), 'hello and goodbye');
  const refused = await sprite.proxyPort(await free(), 9);
  const began = Date.now();
  await exchange(refused.localPort, Buffer.from('x')).catch(() => {});
  check('a refused port is known at once, not after 10 s', Date.now() - began < 8_000);

  const manager = new ProxyManager();
  for (const session of [echo, a, b, refused]) manager.addSession(session);
  const waited = Promise.all([manager.waitAll(), echo.wait()]);
  manager.closeAll();
  await waited;
  check('closed sessions are waited for', echo.localAddr() === null);
  const own = new ProxySession(client, name, { localPort: await free(), remotePort: 7002 });
  await own.start();
  equal('a session by hand', (await exchange(own.localPort, Buffer.alloc(0))).toString(), 'hello and goodbye');
  const ended = once(own, 'close');
  own.close();
  await ended;

  const plain = await proxyPort(client, name, await free(), 7002);
  note('proxyPort');
  const [listed] = await proxyPorts(client, name, [{ localPort: await free(), remotePort: 7002 }]);
  note('proxyPorts');
  for (const session of [plain, listed]) {
    equal('by the functions', (await exchange(session.localPort, Buffer.alloc(0))).toString(), 'hello and goodbye');
    session.close();
  }
  await sprite.deleteService('tunnel');

  async function eventuallyUp(port) {
    for (let tries = 0; tries < 200; tries += 1) {
      const answer = await exchange(port, Buffer.from('?'), 1).catch(() => Buffer.alloc(0));
      if (answer.toString() === '?') return;
      await new Promise((resolve) => { setTimeout(resolve, 50); });
    }
    throw new Error('the echo server is not up');
  }
}
