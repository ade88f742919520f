// Checkpoints: taken while the sprite is awake, looked at, restored.
import { check, equal, rejects } from './harness.mjs';

export default async function checkpoints({ client, name }) {
  const sprite = client.sprite(name);
  const says = async () => (await sprite.execFile('cat', ['/home/sprite/checkpointed'])).stdout.trim();
  const write = (text) => sprite.filesystem().writeFile('/home/sprite/checkpointed', text);
  equal('a new sprite has no checkpoints', await sprite.listCheckpoints(), []);

  await write('one');
  const messages = [];
  const stream = await sprite.createCheckpoint('the first');
  await stream.processAll((message) => { messages.push(message); });
  check('taking one is told step by step', messages.length > 1 && messages[0].type === 'info' && messages[0].data);
  check('and ends', messages.at(-1).type === 'complete' && messages.at(-1).data.includes('v0'));
  check('each step has its time', messages.every((message) => !Number.isNaN(Date.parse(message.time))));

  await write('two');
  const second = await sprite.createCheckpoint();
  let message;
  let last;
  while ((message = await second.next()) !== null) last = message;
  check('the next one has the next number', last.data.includes('v1'));
  second.close();
  equal('a closed stream has ended', await second.next(), null);

  const list = await sprite.listCheckpoints();
  equal('both are listed, the oldest first', list.map(({ id }) => id), ['v0', 'v1']);
  equal('with their comments', list.map(({ comment }) => comment ?? ''), ['the first', '']);
  check('and their times', list.every(({ createTime }) => createTime instanceof Date && !Number.isNaN(createTime.getTime())));
  equal('what descends from one', (await sprite.listCheckpoints('v1')).map(({ id }) => id), ['v1']);
  const one = await sprite.getCheckpoint('v1');
  equal('one can be read', [one.id, one.history], ['v1', ['v0']]);
  await rejects('an unknown one is not found', sprite.getCheckpoint('v9'), /not found/i);
  await rejects('nor can it be restored', sprite.restoreCheckpoint('v9'), /404/);

  await write('three');
  const steps = [];
  await (await sprite.restoreCheckpoint('v0')).processAll((step) => { steps.push(step); });
  check('a restore is told, too', steps.at(-1).type === 'complete');
  equal('the disk is as it was', await says(), 'one');
  const again = await sprite.restoreCheckpoint('v1');
  for await (const step of again) last = step;
  equal('a restore can be iterated', last.type, 'complete');
  equal('and goes forward, too', await says(), 'two');
  const third = await sprite.restoreCheckpoint('v1');
  while ((message = await third.next()) !== null) last = message;
  third.close();
  equal('and be read step by step', last.type, 'complete');
  equal('those that were made by themselves are not listed', (await sprite.listCheckpoints()).length, 2);
}
