// The filesystem, whole.
import { FilesystemError } from '@fly/sprites';
import { check, equal, rejects } from './harness.mjs';

export default async function files({ client, name }) {
  const sprite = client.sprite(name);
  const fs = sprite.filesystem('/home/sprite');
  const code = (wanted) => (error) => error instanceof FilesystemError && error.code === wanted;

  await fs.writeFile('deep/er/a.txt', 'hällo', { mode: 0o640 });
  equal('what is written is read', await fs.readFile('deep/er/a.txt', 'utf8'), 'hällo');
  equal('by its absolute path too', (await sprite.filesystem().readFile('/home/sprite/deep/er/a.txt')).toString(), 'hällo');
  const stat = await fs.stat('deep/er/a.txt');
  equal('stat', [stat.size, stat.mode & 0o777, stat.isFile(), stat.isDirectory(), stat.isSymbolicLink()], [6, 0o640, true, false, false]);
  check('its time is now', Math.abs(stat.mtime - Date.now()) < 600_000);
  const binary = Buffer.from(Array.from({ length: 3 << 20 }, (_, n) => n % 251));
  await fs.writeFile('big.bin', binary);
  check('3 MiB come back', binary.equals(await fs.readFile('big.bin')));
  await rejects('a file that is not there', fs.readFile('nothing'), code('ENOENT'));
  await rejects('a directory is not read', fs.readFile('deep'), code('EISDIR'));

  equal('readdir', await fs.readdir('deep'), ['er']);
  const types = await fs.readdir('deep', { withFileTypes: true });
  equal('with types', [types[0].name, types[0].isDirectory(), types[0].isFile(), types[0].parentPath], ['er', true, false, 'deep']);
  check('recursively', (await fs.readdir('deep', { recursive: true })).some((entry) => entry.endsWith('a.txt')));
  equal('by a pattern', await fs.readdir('.', { pattern: '*.bin' }), ['big.bin']);
  await fs.mkdir('made/of/parts', { recursive: true });
  equal('mkdir makes an empty directory', await fs.readdir('made/of/parts'), []);
  await rejects('mkdir without parents', fs.mkdir('not/there'), code('ENOENT'));
  equal('exists', [await fs.exists('big.bin'), await fs.exists('nothing')], [true, false]);

  await fs.rename('deep/er/a.txt', 'deep/b.txt');
  equal('rename', [await fs.exists('deep/er/a.txt'), await fs.readFile('deep/b.txt', 'utf8')], [false, 'hällo']);
  await fs.copyFile('deep/b.txt', 'deep/c.txt', { preserveAttrs: true });
  equal('copyFile', await fs.readFile('deep/c.txt', 'utf8'), 'hällo');
  await fs.copyFile('deep', 'copied', { recursive: true });
  equal('a whole directory', (await fs.readdir('copied')).sort(), ['b.txt', 'c.txt', 'er']);
  await fs.chmod('deep/c.txt', 0o755);
  equal('chmod', (await fs.stat('deep/c.txt')).mode & 0o777, 0o755);
  await fs.chmod('copied', 0o700, { recursive: true });
  equal('recursively', (await fs.stat('copied/b.txt')).mode & 0o777, 0o700);
  await fs.chown('deep/c.txt', { uid: 0, gid: 0 });
  check('chown', true);
  await rejects('chown of nobody', fs.chown('deep/c.txt', {}), TypeError);
  await fs.appendFile('log', 'one\n');
  await fs.appendFile('log', 'two\n');
  equal('appendFile', await fs.readFile('log', 'utf8'), 'one\ntwo\n');
  await fs.writeJSON('data.json', { a: [1, 2] }, { spaces: 2 });
  equal('JSON', await fs.readJSON('data.json'), { a: [1, 2] });

  const watcher = await fs.watch('made', { recursive: true });
  equal('a watch says that it watches', (await watcher.next()).type, 'subscribed');
  await fs.writeFile('made/new.txt', 'x');
  let event;
  do { event = await watcher.next(); } while (event && !event.path?.endsWith('/new.txt'));
  check('and what happens', event?.type === 'event' && ['create', 'write', 'rename'].includes(event.event));
  check('it is open', watcher.isClosed() === false);
  watcher.close();
  do { event = await watcher.next(); } while (event);
  equal('a closed watch has ended', event, null);
  const iterated = await fs.watch(['deep']);
  for await (const step of iterated) { check('and can be iterated', step.type === 'subscribed'); break; }

  await rejects('a directory with content is kept', fs.rm('deep'), (error) => ['ENOTEMPTY', 'EISDIR'].includes(error.code));
  await fs.rm('deep', { recursive: true });
  await fs.rm('big.bin');
  await fs.rm('nothing', { force: true });
  await rejects('rm of nothing', fs.rm('nothing'), code('ENOENT'));
  equal('what is removed is gone', await fs.exists('deep'), false);
  for (const path of ['../../../../etc/hostname', '/proc/1/root/etc/hostname']) {
    const found = await fs.readFile(path, 'utf8').catch(() => '');
    check('no path climbs out of the sprite', found === '' || found.trim() === (await sprite.exec('hostname')).stdout.trim());
  }
}
