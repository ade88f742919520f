// Sessions: detach, list, attach with what was written before, kill.
import { check, eventually, gather, once, rejects, equal } from './harness.mjs';

export default async function sessions({ client, name }) {
  const sprite = client.sprite(name);
  const id = async (mark) => (await sprite.listSessions()).find((session) => session.command.includes(mark))?.id;

  const first = sprite.createSession('sh', ['-c', 'echo before-detach; while read line; do echo "heard $line"; done'], { tty: true });
  const screen = gather(first.stdout);
  const info = await once(first, 'message');
  check('the id is text', typeof info.session_id === 'string' && info.session_id.length > 0);
  await screen.until('before-detach');
  const listed = (await sprite.listSessions()).find((session) => session.id === info.session_id);
  check('it is listed', listed !== undefined && listed.tty === true);
  check('with its command', listed.command.includes('before-detach') && listed.command.startsWith('/'));
  check('and its times', !Number.isNaN(listed.created.getTime()) && listed.workdir.includes('/home'));

  const second = sprite.attachSession(info.session_id);
  const replayed = gather(second.stdout);
  await once(second, 'spawn');
  await replayed.until('before-detach');
  second.stdin.write('you\n');
  await replayed.until('heard you');
  await screen.until('heard you');
  check('both clients see the same', true);

  const stream = await sprite.killSession(info.session_id, 'SIGHUP', '5s');
  const events = [];
  await stream.processAll((event) => { events.push(event); });
  equal('a kill begins with the signal', events[0].type, 'signal');
  equal('and ends', events.at(-1).type, 'complete');
  check('with the exit code', Number.isInteger(events.at(-1).exitCode));
  await Promise.all([first.wait(), second.wait()]);
  await eventually('a killed session is not listed', async () => (await id('before-detach')) === undefined);
  const dead = sprite.attachSession(info.session_id);
  await rejects('a dead session is refused', new Promise((_, reject) => { dead.on('error', reject); }), /WebSocket/);
  await rejects('killing it again too', sprite.killSession(info.session_id), (error) => [404, 410].includes(error.statusCode));

  const stubborn = sprite.createSession('sh', ['-c', 'trap "" TERM; echo trapped-on; while :; do sleep 1; done'], { detachable: true });
  await gather(stubborn.stdout).until('trapped-on');
  const kill = await sprite.killSession(await id('trapped-on'), 'TERM', '300ms');
  const types = [];
  let event;
  while ((event = await kill.next()) !== null) types.push(event.type);
  check('what ignores TERM is killed', types.includes('timeout') && types.includes('killed'));
  kill.close();
  await stubborn.wait();

  const plain = sprite.spawn('sh', ['-c', 'echo plain-one; while :; do sleep 1; done'], { maxRunAfterDisconnect: '0' });
  await gather(plain.stdout).until('plain-one');
  const again = sprite.attachSession(await id('plain-one'));
  await gather(again.stdout).until('plain-one');
  check('a command without a terminal can be attached to, and replays', true);
  const iterated = await sprite.killSession(await id('plain-one'), 'KILL');
  for await (const step of iterated) { check('a kill can be iterated', step.type.length > 0); break; }
  await Promise.all([plain.wait(), again.wait()]);
}
