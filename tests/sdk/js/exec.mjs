// Commands: streams, codes, signals, terminals, over WebSockets and over plain HTTP.
import { createHash } from 'node:crypto';
import { ExecError } from '@fly/sprites';
import { check, delay, equal, eventually, gather, once, rejects } from './harness.mjs';

export default async function exec({ client, name }) {
  const sprite = client.sprite(name);
  const run = (line, options) => sprite.execFile('sh', ['-c', line], options);

  equal('exec splits at spaces', (await sprite.exec('echo hello world')).stdout, 'hello world\n');
  const both = await run('echo out; echo err >&2');
  equal('stdout and stderr are apart', [both.stdout, both.stderr, both.exitCode], ['out\n', 'err\n', 0]);
  await rejects('a failing command is an ExecError', run('echo so; echo bad >&2; exit 7'), (error) => {
    equal('with its code and output', [error.exitCode, error.stdout, error.stderr], [7, 'so\n', 'bad\n']);
    return error instanceof ExecError;
  });
  check('home is where it runs', (await run('pwd')).stdout.includes('/home'));
  equal('cwd', (await run('pwd', { cwd: '/tmp' })).stdout, '/tmp\n');
  equal('env', (await run('echo "$A|$B"', { env: { A: 'x y', B: 'ü=1&2' } })).stdout, 'x y|ü=1&2\n');
  check('env is merged', (await run('echo $HOME $PATH', { env: { A: '1' } })).stdout.includes('/home'));
  equal('arguments are not split', (await sprite.execFile('printf', ['%s;', 'a b', '', '*', 'ü'])).stdout, 'a b;;*;ü;');
  equal('bytes as they are', (await run("printf '\\377\\000\\n'", { encoding: 'buffer' })).stdout, Buffer.from([255, 0, 10]));
  await rejects('an unknown program is 127', sprite.execFile('no-such-program'), (error) => error.exitCode === 127 && error.stderr.length > 0);
  await rejects('a file that is no program is 126', sprite.execFile('/etc/passwd'), (error) => error.exitCode === 126);
  await rejects('a signal is 128 and its number', run('kill -KILL $$'), (error) => error.exitCode === 137);
  await rejects('too much output is an error', run('head -c 100000 /dev/zero', { maxBuffer: 1000 }), /maxBuffer/);
  const large = await run('head -c 5000000 /dev/zero | tr "\\0" x', { encoding: 'buffer' });
  equal('5 MB come whole', large.stdout.length, 5_000_000);

  const cat = sprite.spawn('cat');
  const echoed = gather(cat.stdout);
  await once(cat, 'spawn');
  const body = Buffer.alloc(1 << 20, 'stdin ');
  cat.stdin.write(body);
  cat.stdin.end();
  equal('stdin ends and so does the command', await cat.wait(), 0);
  const hash = (bytes) => createHash('sha256').update(bytes).digest('hex');
  equal('a megabyte goes in and comes back', hash(echoed.bytes()), hash(body));
  equal('exitCode() after the end', cat.exitCode(), 0);
  const twice = sprite.spawn('true');
  await rejects('starting twice is an error', twice.start(), /already started/);
  await twice.wait();

  const slow = sprite.spawn('sh', ['-c', 'for i in 1 2 3; do echo $i; sleep 0.3; done']);
  const times = [];
  slow.stdout.on('data', () => times.push(Date.now()));
  await slow.wait();
  check('output comes while it is written', times.length >= 3 && times.at(-1) - times[0] >= 300);
  for (const [signal, send, code] of [['SIGTERM', 'kill', 143], ['SIGINT', 'signal', 130], ['USR1', 'signal', 138]]) {
    const sleeper = sprite.spawn('sh', ['-c', 'echo up; exec sleep 100']);
    const up = gather(sleeper.stdout);
    await once(sleeper, 'spawn');
    await up.until('up');
    sleeper[send](signal);
    equal(`${send}(${signal})`, await sleeper.wait(), code);
  }

  const terminal = sprite.spawn('sh', ['-c', 'tty; stty size; read x; stty size; echo got $x; exit 0'], { tty: true, rows: 33, cols: 101 });
  const screen = gather(terminal.stdout);
  const message = once(terminal, 'message');
  await once(terminal, 'spawn');
  equal('a terminal session begins with session_info', (await message).type, 'session_info');
  await screen.until('33 101');
  check('it has a terminal', screen.text().includes('/dev/pts/'));
  terminal.resize(120, 40);
  await delay(100);
  terminal.stdin.write('word\n');
  equal('its end', await terminal.wait(), 0);
  check('the size changed', screen.text().includes('40 120'));
  check('what was typed arrived', screen.text().includes('got word'));
  const failing = sprite.spawn('sh', ['-c', 'exit 5'], { tty: true });
  await once(failing, 'spawn');
  check('a terminal program that fails is seen to fail', await failing.wait() !== 0);
  const bad = sprite.spawn('sh', ['-c', 'tty'], { tty: false });
  const nothing = gather(bad.stdout);
  equal('without a terminal there is none', await bad.wait(), 1);
  check('and tty says so', nothing.text().includes('not a tty'));

  const many = await Promise.all(Array.from({ length: 20 }, (_, n) => run(`echo ${n}; exit 0`)));
  equal('twenty at once', many.map(({ stdout }) => Number(stdout)), Array.from({ length: 20 }, (_, n) => n));

  for (let n = 0; n < 15; n += 1) {
    const { stdout, stderr } = await sprite.execFileHTTP('sh', ['-c', 'echo out; echo err >&2']);
    if (stdout !== 'out\n' || stderr !== 'err\n') throw new Error(`exec over HTTP: ${JSON.stringify({ stdout, stderr })}`);
  }
  check('exec over HTTP keeps its frames apart', true);
  equal('its stdin', (await sprite.execFileHTTP('cat', [], { input: 'given' })).stdout, 'given');
  equal('its environment', (await sprite.execFileHTTP('sh', ['-c', 'echo $A; pwd'], { env: { A: 'b' }, cwd: '/tmp' })).stdout, 'b\n/tmp\n');
  await rejects('its code', sprite.execFileHTTP('sh', ['-c', 'exit 9']), (error) => error.exitCode === 9);
  // More than a read of the socket holds is cut into pieces that the package takes for frames of their own.
  equal('10 kB over HTTP', (await sprite.execFileHTTP('sh', ['-c', 'head -c 10000 /dev/zero'], { encoding: 'buffer' })).stdout.length, 10_000);
  await rejects('and it can be given up', sprite.execFileHTTP('sleep', ['100'], { timeout: 300 }), /timeout|abort/i);
  await eventually('nothing is left behind', async () => (await sprite.listSessions()).length === 0);
}
