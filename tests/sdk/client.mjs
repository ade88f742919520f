// Drives the published @fly/sprites, unmodified: node client.mjs BASE_URL TOKEN. Prints "passed N checks".
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { SpritesClient } from '@fly/sprites';

const [baseURL, token] = process.argv.slice(2);
const client = new SpritesClient(token, { baseURL });
let checks = 0;
const check = (claim, ok) => { assert.ok(ok, claim); checks += 1; };
const rejects = async (claim, promise, pattern) => { await assert.rejects(promise, pattern, claim); checks += 1; };

const name = `js-${Date.now()}`;
const made = await client.createSprite(name, { urlSettings: { auth: 'sprite' }, labels: ['sdk'] });
check('create names the sprite', made.name === name);
await rejects('a taken name is refused', client.createSprite(name), /taken|exists|409/i);
await rejects('a bad name is refused', client.createSprite('Not A Name'), /name|400/i);

const got = await client.getSprite(name);
check('a new sprite is cold', got.status === 'cold');
check('it has a URL', /^https?:\/\//.test(got.url));
check('it has an id', typeof got.id === 'string' && got.id.length > 0);
check('its labels are kept', JSON.stringify(got.labels) === '["sdk"]');
check('its times are dates', !Number.isNaN(new Date(got.createdAt ?? got.created_at).getTime()));
await rejects('an unknown sprite is not found', client.getSprite('no-such-sprite'), /not found|no sprite|404/i);

for (let n = 0; n < 4; n += 1) await client.createSprite(`${name}-${n}`);
const page = await client.listSprites({ prefix: name, maxResults: 2 });
check('a page has as many as asked for', page.sprites.length === 2);
check('and says that there is more', page.hasMore === true && page.nextContinuationToken);
const all = await client.listAllSprites(name);
check('all pages together have all', all.length === 5);
check('in order and without repeats', new Set(all.map((sprite) => sprite.name)).size === 5);

await client.updateURLSettings(name, { auth: 'public' });
check('settings change', (await client.getSprite(name)).urlSettings?.auth === 'public');
await client.updateSprite(name, { labels: ['a', 'b'] });
check('labels change', (await client.getSprite(name)).labels?.join() === 'a,b');

const watch = await client.watchSprites({ prefix: name });
const first = await watch.next();
check('the watch begins with what there is', first && typeof (first.name ?? first.type) === 'string');
watch.close();

const sprite = client.sprite(name);
check('a new sprite has no services', (await sprite.listServices()).length === 0);
const events = [];
const stream = await sprite.createService('web', {
  cmd: '/bin/sh', args: ['-c', 'echo up; echo oops >&2; exec sleep 1000'], env: { A: 'b' }, dir: '/tmp', httpPort: 8080,
}, '2s');
await stream.processAll((event) => { events.push(event); });
const types = events.map((event) => event.type);
check('creating streams the start', types.includes('started'));
check('and the output', events.some((event) => event.type === 'stdout' && event.data?.includes('up')));
check('and the errors', events.some((event) => event.type === 'stderr' && event.data?.includes('oops')));
check('and ends', types.at(-1) === 'complete');
check('events carry Unix milliseconds', events.every((event) => !event.timestamp || event.timestamp > 1.7e12));

const service = await sprite.getService('web');
check('the definition comes back', service.cmd === '/bin/sh' && service.args.length === 2 && service.httpPort === 8080);
check('it runs', service.state?.status === 'running' && service.state.pid > 0);
await rejects('a second http_port is refused',
  sprite.createService('web2', { cmd: '/bin/true', httpPort: 9090 }, '0s'), /HTTP port|409|conflict/i);
await rejects('an unknown service is not found', sprite.getService('nope'), /404|not found/i);

await (await sprite.stopService('web', '5s')).processAll(() => {});
check('it stops', (await sprite.getService('web')).state?.status === 'stopped');
await (await sprite.startService('web', '1s')).processAll(() => {});
check('and starts', (await sprite.getService('web')).state?.status === 'running');
const before = (await sprite.getService('web')).state.pid;
await (await sprite.restartService('web', '1s')).processAll(() => {});
check('and restarts', (await sprite.getService('web')).state.pid !== before);
await sprite.signalService('web', 'KILL');
for (let tries = 0; tries < 100; tries += 1) {
  const { state } = await sprite.getService('web');
  if (state.status === 'running' && state.restartCount > 0) break;
  await delay(100);
}
check('a killed service comes back', (await sprite.getService('web')).state.status === 'running');
let logged = '';
await (await sprite.getServiceLogs('web', { lines: 50 })).processAll((event) => { logged += event.data ?? ''; });
check('its logs are kept', logged.includes('up') && logged.includes('oops'));

await sprite.createService('base', { cmd: '/bin/sleep', args: ['1000'] }, '0s');
await sprite.createService('top', { cmd: '/bin/sleep', args: ['1000'], needs: ['base'] }, '0s');
await rejects('a needed service can not be deleted', sprite.deleteService('base'), /409|conflict/i);
await sprite.deleteService('top');
await sprite.deleteService('base');
check('deleted services are gone', (await sprite.listServices()).length === 1);
const health = await client.checkSprite?.(name) ?? await sprite.check?.();
check('the check says healthy', !health || health.status === 'healthy');

const stranger = new SpritesClient('acme/xxxxx/none/spr_none', { baseURL });
await rejects('a wrong token is refused', stranger.getSprite(name), /token|401/i);

for (let n = 0; n < 4; n += 1) await client.deleteSprite(`${name}-${n}`);
await sprite.delete();
await rejects('a destroyed sprite is gone at once', client.getSprite(name), /not found|no sprite|404/i);
console.log(`passed ${checks} checks`);
process.exit(0);
