// Being told when a port opens.
import { check, equal, eventually, gather, once } from './harness.mjs';

export default async function ports({ client, name }) {
  const sprite = client.sprite(name);
  const watcher = await sprite.watchPorts();
  const first = await watcher.next();
  equal('a watch begins with what listens', [first.type, Array.isArray(first.ports)], ['port_list', true]);

  const command = sprite.spawn('python3', ['-c', 'import socket,time; s=socket.create_server(("127.0.0.1", 7100)); print("up", flush=True); input()'], { tty: true });
  const notices = [];
  command.on('message', (message) => { notices.push(message); });
  await gather(command.stdout).until('up');
  let event;
  do { event = await watcher.next(); } while (event && !(event.type === 'port_opened' && event.port === 7100));
  check('a port that opens is told with its process', event.pid > 0 && typeof event.address === 'string');
  await eventually("on the command's own socket too", () => notices.some((notice) => notice.type === 'port_opened' && notice.port === 7100));
  const second = await sprite.watchPorts();
  check('a later watch lists it', (await second.next()).ports.some((open) => open.port === 7100));
  second.close();
  check('it is closed', second.isClosed());
  command.stdin.write('\n');
  await command.wait();
  do { event = await watcher.next(); } while (event && !(event.type === 'port_closed' && event.port === 7100));
  check('and that it closes', event?.type === 'port_closed');
  const closed = once(watcher, 'close');
  watcher.close();
  await closed;
  const third = await sprite.watchPorts();
  for await (const step of third) { check('a watch can be iterated', step.type === 'port_list'); break; }
}
