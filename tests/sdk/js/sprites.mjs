// Sprites as a whole: create, read, list, watch, change, check, destroy.
import { SpritesClient } from '@fly/sprites';
import { check, equal, eventually, rejects } from './harness.mjs';

export default async function sprites({ client, baseURL, token, name }) {
  const made = await client.createSprite(name, {
    urlSettings: { auth: 'sprite' }, labels: ['sdk'], environment: { GREETING: 'hello' }, config: { ramMB: 512, cpus: 1 }, waitForCapacity: true, runtime: 'dev',
  });
  equal('create names the sprite', made.name, name);
  await rejects('a taken name is refused', client.createSprite(name), (error) => error.statusCode === 409);
  await rejects('a bad name is refused', client.createSprite('Not A Name'), (error) => error.statusCode === 400);

  const got = await client.getSprite(name);
  equal('a new sprite is cold', got.status, 'cold');
  check('it has a URL', /^https?:\/\//.test(got.url));
  check('it has an id', typeof got.id === 'string' && got.id.length > 0);
  equal('its labels are kept', got.labels, ['sdk']);
  equal('its environment is kept', got.environment, { GREETING: 'hello' });
  check('its times are dates', got.createdAt instanceof Date && !Number.isNaN(got.createdAt.getTime()));
  check('versions are told', got.version && got.environmentVersion);
  await rejects('an unknown sprite is not found', client.getSprite('no-such-sprite'), /not found|no sprite|404/i);

  for (let n = 0; n < 4; n += 1) await client.createSprite(`${name}-${n}`);
  const page = await client.listSprites({ prefix: name, maxResults: 2 });
  equal('a page has as many as asked for', page.sprites.length, 2);
  check('and says that there is more', page.hasMore === true && page.nextContinuationToken);
  const next = await client.listSprites({ prefix: name, maxResults: 2, continuationToken: page.nextContinuationToken, bulkLoad: true });
  check('the next page goes on', next.sprites[0].name > page.sprites[1].name);
  check('counters are numbers', Number.isInteger(page.cold) && page.organizationName === 'acme');
  const all = await client.listAllSprites(name);
  equal('all pages together have all', all.length, 5);
  equal('without repeats', new Set(all.map((sprite) => sprite.name)).size, 5);

  await client.updateURLSettings(name, { auth: 'public' });
  equal('settings change', (await client.getSprite(name)).urlSettings?.auth, 'public');
  equal('an update answers what is now', (await client.updateSprite(name, { labels: ['a', 'b'] })).labels, ['a', 'b']);
  const sprite = client.sprite(name);
  await sprite.updateURLSettings({ auth: 'sprite' });
  equal('the same from the sprite', (await sprite.update({ labels: [] })).labels, []);
  equal('and the settings stayed', (await client.getSprite(name)).urlSettings?.auth, 'sprite');

  const watch = await client.watchSprites({ prefix: name });
  const seen = [];
  const watching = watch.processAll((event) => { seen.push(event); });
  await eventually('the watch begins with what there is', () => seen.some((event) => event.name === name && event.status === 'cold'));
  await client.createSprite(`${name}-late`);
  await eventually('and shows what comes', () => seen.some((event) => event.name === `${name}-late`));
  watch.close();
  await watching.catch(() => {});
  const second = await client.watchSprites({ prefix: name });
  check('a watch can be read step by step', typeof (await second.next()).name === 'string');
  second.close();
  const third = await client.watchSprites({ prefix: name });
  for await (const event of third) { check('and be iterated', event.organization.cold >= 1); break; }

  equal('a sprite that sleeps is checked without waking', (await client.checkSprite(name)).status, 'hibernated');
  equal('the same from the sprite', (await sprite.check()).spriteName, name);
  equal('it still sleeps', (await client.getSprite(name)).status, 'cold');
  await client.deleteSprite(`${name}-late`);
  await client.sprite(`${name}-0`).delete();
  await client.sprite(`${name}-1`).destroy();
  for (let n = 2; n < 4; n += 1) await client.deleteSprite(`${name}-${n}`);
  await rejects('a destroyed sprite is gone at once', client.getSprite(`${name}-0`), /not found|no sprite|404/i);

  const stranger = new SpritesClient('acme/xxxxx/none/spr_none', { baseURL });
  await rejects('a wrong token is refused', stranger.getSprite(name), /token|401|unauthorized/i);
  equal('a trailing slash in the base URL is nothing', (await new SpritesClient(token, { baseURL: `${baseURL}/` }).getSprite(name)).name, name);
}
