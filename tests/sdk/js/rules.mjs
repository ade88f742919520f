// The fifteen rules that decide whether clients work, each as bytes on the wire: what the packages would
// stumble over without saying so.
import WebSocket from 'ws';
import { check, delay, equal, eventually } from './harness.mjs';

export default async function rules({ client, baseURL, token, name }) {
  const headers = { Authorization: `Bearer ${token}` };
  const sprite = `/v1/sprites/${name}`;
  const call = (method, path, body, more = {}) => fetch(`${baseURL}${path}`, {
    method, headers: { ...headers, ...more }, body: body === undefined ? undefined : JSON.stringify(body),
  });
  /** A WebSocket's frames in order, its upgrade's headers and its end. */
  const socket = (path, { send = [], options = {} } = {}) => new Promise((resolve, reject) => {
    const ws = new WebSocket(`${baseURL.replace(/^http/, 'ws')}${path}`, { headers, ...options });
    const found = { ws, frames: [], upgrade: {}, closed: null };
    ws.on('upgrade', (answer) => { found.upgrade = answer.headers; });
    ws.on('unexpected-response', (_, answer) => {
      let body = '';
      answer.on('data', (part) => { body += part; });
      answer.on('end', () => resolve({ ...found, status: answer.statusCode, body }));
    });
    ws.on('message', (data, binary) => found.frames.push(binary ? data : JSON.parse(data.toString())));
    ws.on('open', () => { for (const frame of send) ws.send(frame); });
    ws.on('close', (code, reason) => { found.closed = code; found.reason = reason.toString(); resolve(found); });
    ws.on('error', (error) => { if (found.closed === null) reject(error); });
  });
  const exec = (line, query = '', more = {}) => socket(`${sprite}/exec?cmd=sh&cmd=-c&cmd=${encodeURIComponent(line)}&path=sh${query}`, more);
  const texts = (frames, type) => frames.filter((frame) => frame.type === type);

  // 6: asked for first, as it takes a while.
  const silent = exec('sleep 17; exit 3', '&stdin=false');

  const spare = `${name}-rule`;
  equal('rule 1: create answers exactly 201', (await call('POST', '/v1/sprites', { name: spare })).status, 201);

  const put = await call('PUT', `/v1/sprites/${spare}`, { labels: [] });
  equal('rule 2: a change answers 200 with the object', [put.status, (await put.json()).name], [200, spare]);
  await (await call('PUT', `${sprite}/services/rule?duration=0s`, { cmd: '/bin/sleep', args: ['100'] })).text();
  equal('rule 2: a signal answers 204', (await call('POST', `${sprite}/services/signal`, { name: 'rule', signal: 'CONT' })).status, 204);
  equal('rule 2: a delete answers 204', (await call('DELETE', `${sprite}/services/rule`)).status, 204);

  const plain = await exec('echo out; exit 7');
  const tail = plain.frames.slice(-2);
  equal('rule 3: text exit, with both names of the code', [tail[0].type, tail[0].exit_code, tail[0].code], ['exit', 7, 7]);
  equal('rule 3: then the binary frame', [...tail[1]], [3, 7]);
  equal('rule 3: then Close 1000', plain.closed, 1000);
  const terminal = await exec('exit 5', '&tty=true');
  equal('rule 3: a terminal has no binary exit', texts(terminal.frames, 'exit').at(-1).exit_code, 5);
  check('rule 3: and its failure is in the Close code', terminal.closed !== 1000);
  equal('rule 3: its success too', (await exec('exit 0', '&tty=true')).closed, 1000);

  for (const path of [`${sprite}/exec?cmd=true`, `${sprite}/ports/watch`]) {
    const ws = new WebSocket(`${baseURL.replace(/^http/, 'ws')}${path}`, { headers, perMessageDeflate: true });
    await new Promise((resolve, reject) => { ws.on('open', resolve); ws.on('error', reject); });
    equal(`rule 4: no compression on ${path.split('/').at(-1)}`, ws.extensions, '');
    ws.terminate();
  }

  const [first] = plain.frames;
  check('rule 5: session_info is first', first.type === 'session_info');
  check('rule 5: its id is text', typeof first.session_id === 'string');
  equal('rule 5: it knows of the terminal', [first.tty, terminal.frames[0].tty], [false, true]);

  for (const method of ['GET', 'POST']) equal('rule 7: control answers 404', (await call(method, `/v1/sprites/${spare}/control`)).status, 404);
  equal('rule 7: and wakes nothing', (await (await call('GET', `/v1/sprites/${spare}`)).json()).status, 'cold');

  const isNew = (version) => /^v0\.0\.1-rc(\d+)$/.exec(version)?.[1] >= 30;
  for (const path of ['/v1/sprites', sprite, `${sprite}/exec`, `${sprite}/services`, '/v1/sprites/none']) {
    check(`rule 8: Sprite-Version on ${path}`, isNew((await call('GET', path)).headers.get('sprite-version')));
  }
  check('rule 8: and on a 101', isNew(plain.upgrade['sprite-version']));
  equal('rule 8: which tells of signals', plain.upgrade['x-sprite-capabilities'], 'signal');
  const head = await call('HEAD', `${sprite}/exec`);
  check('rule 8: and on a HEAD', head.status === 200 && isNew(head.headers.get('sprite-version')));

  equal('rule 9: max_results is clamped', (await call('GET', '/v1/sprites?max_results=100')).status, 200);

  const listed = await (await call('GET', `/v1/sprites?prefix=${spare}x`)).json();
  equal('rule 10: an empty list is a list', listed.sprites, []);
  equal('rule 10: of services too', await (await call('GET', `${sprite}/services`)).json(), []);
  await eventually('rule 10: of sessions too', async () => {
    const { sessions, count } = await (await call('GET', `${sprite}/exec`)).json();
    return Array.isArray(sessions) && sessions.length === count;
  });
  const one = await (await call('GET', `/v1/sprites/${spare}`)).json();
  check('rule 10: times are RFC 3339 or absent', Object.entries(one).filter(([key]) => key.endsWith('_at')).every(([, at]) => at === null || !Number.isNaN(Date.parse(at))));

  const answer = await fetch(`${baseURL}${sprite}/exec?cmd=sh&cmd=-c&cmd=${encodeURIComponent('echo a; echo b >&2; exit 4')}`, { method: 'POST', headers });
  equal('rule 11: exec over HTTP is a stream of bytes', answer.headers.get('content-type'), 'application/octet-stream');
  const pieces = [];
  for await (const piece of answer.body) pieces.push(Buffer.from(piece));
  equal('rule 11: its last piece is the exit frame alone', [...pieces.at(-1)], [3, 4]);
  check('rule 11: each piece has its stream', pieces.some((piece) => piece.toString() === '\x01a\n') && pieces.some((piece) => piece.toString() === '\x02b\n'));
  for (const query of ['tty=true', 'detachable=true', 'id=1', 'cc=true']) {
    equal(`rule 11: ${query} is refused`, (await call('POST', `${sprite}/exec?cmd=true&${query}`)).status, 400);
  }

  for (const flag of ['mkdir', 'mkdirParents']) {
    const written = await fetch(`${baseURL}${sprite}/fs/write?path=/tmp/${flag}/x/y&${flag}=true`, { method: 'PUT', headers, body: 'z' });
    equal(`rule 12: ${flag}`, written.status, 200);
  }
  for (const key of ['http_port', 'httpPort']) {
    await (await call('PUT', `${sprite}/services/spelled?duration=0s`, { cmd: '/bin/sleep', args: ['100'], [key]: 8123 })).text();
    equal(`rule 12: ${key}`, (await (await call('GET', `${sprite}/services/spelled`)).json()).http_port, 8123);
    await call('DELETE', `${sprite}/services/spelled`);
  }
  equal('rule 12: cmd[]', (await (await call('POST', `${sprite}/exec?cmd[]=echo&cmd[]=hi`)).text()).includes('hi'), true);
  for (const signal of ['SIGTERM', 'TERM', 15]) {
    const ended = await exec('exec sleep 100', '', { send: [JSON.stringify({ type: 'signal', signal })] });
    equal(`rule 12: the signal ${signal}`, texts(ended.frames, 'exit')[0].exit_code, 143);
  }
  const session = async () => {
    const ws = new WebSocket(`${baseURL.replace(/^http/, 'ws')}${sprite}/exec?cmd=sleep&cmd=100&tty=true`, { headers });
    const id = await new Promise((resolve, reject) => {
      ws.once('message', (data) => resolve(JSON.parse(data.toString()).session_id));
      ws.once('error', reject);
    });
    return { ws, id };
  };
  const { ws, id } = await session();
  for (const attach of [`exec/${id}`, `exec?id=${id}`, `exec?session_id=${id}&path=&cmd=`]) {
    const attached = new WebSocket(`${baseURL.replace(/^http/, 'ws')}${sprite}/${attach}`, { headers });
    const info = await new Promise((resolve, reject) => { attached.once('message', (data) => resolve(JSON.parse(data.toString()))); attached.once('error', reject); });
    equal(`rule 12: attach by ${attach.replace(id, 'ID')}`, info.session_id, id);
    attached.terminate();
  }
  const killed = await call('POST', `${sprite}/exec/${id}/kill`, { signal: 'SIGKILL', timeout: 5 });
  check('rule 12: kill by body', (await killed.text()).includes('complete'));
  ws.terminate();
  const other = await session();
  check('rule 12: kill by query', (await (await call('POST', `${sprite}/exec/${other.id}/kill?signal=KILL&timeout=5s`)).text()).includes('complete'));
  other.ws.terminate();

  const dead = await socket(`${sprite}/exec/${id}`);
  equal('rule 13: a dead session is a 404 before the upgrade', dead.status, 404);
  check('rule 13: with a body', dead.body.includes(id));

  const python = "import socket; s=socket.create_server(('127.0.0.1',7200)); c=s.accept()[0]; c.sendall(b'bye')";
  const target = client.sprite(name).spawn('python3', ['-c', python]);
  target.on('error', () => {});
  let tunnel;
  await eventually('rule 14: a tunnel is opened', async () => {
    tunnel = await socket(`${sprite}/proxy`, { send: [JSON.stringify({ host: 'localhost', port: 7200 })] });
    return tunnel.frames[0]?.status === 'connected';
  });
  check('rule 14: its text reply is first', typeof tunnel.frames[0].target === 'string');
  equal('rule 14: then bytes', Buffer.concat(tunnel.frames.slice(1)).toString(), 'bye');
  equal("rule 14: and Close 1000 when the target's side ends", tunnel.closed, 1000);
  await target.wait();
  const refused = await socket(`${sprite}/proxy`, { send: [JSON.stringify({ host: 'localhost', port: 9 })] });
  check('rule 14: a refusal is told in text, too', refused.frames[0].status !== 'connected' && refused.closed === 1011);
  equal('rule 14: nonsense is Close 1003', (await socket(`${sprite}/proxy`, { send: ['nonsense'] })).closed, 1003);

  for (const path of [`/v1/sprites/${spare}`, '/v1/sprites', `/v1/sprites/${spare}/check`, `/v1/sprites/${spare}/why`, '/v1/organization']) await (await call('GET', path)).text();
  await call('PUT', `/v1/sprites/${spare}`, { labels: ['x'] });
  equal('rule 15: reads and settings wake nothing', (await (await call('GET', `/v1/sprites/${spare}`)).json()).status, 'cold');
  equal('rule 15: sessions do', (await call('GET', `/v1/sprites/${spare}/exec`)).status, 200);
  check('rule 15: it was woken', (await (await call('GET', `/v1/sprites/${spare}`)).json()).status !== 'cold');
  await call('DELETE', `/v1/sprites/${spare}`);

  const { frames } = await silent;
  check('rule 6: a silent command has a sign of life', texts(frames, 'keepalive').length >= 1);
  equal('rule 6: and ends as it does', texts(frames, 'exit')[0].exit_code, 3);
  await delay(0);
}
