// Services.
import { check, equal, eventually, rejects } from './harness.mjs';

export default async function services({ client, name }) {
  const sprite = client.sprite(name);
  equal('a new sprite has no services', await sprite.listServices(), []);
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
  await rejects('a second http_port is refused', sprite.createService('web2', { cmd: '/bin/true', httpPort: 9090 }, '0s'), /HTTP port|409|conflict/i);
  await rejects('an unknown service is not found', sprite.getService('nope'), /404|not found/i);

  await (await sprite.stopService('web', '5s')).processAll(() => {});
  equal('it stops', (await sprite.getService('web')).state?.status, 'stopped');
  const start = await sprite.startService('web', '1s');
  let step;
  const seen = [];
  while ((step = await start.next()) !== null) seen.push(step.type);
  check('a start can be read step by step', seen.includes('started'));
  equal('and starts', (await sprite.getService('web')).state?.status, 'running');
  const before = (await sprite.getService('web')).state.pid;
  const restart = await sprite.restartService('web', '1s');
  for await (const event of restart) { check('a restart can be iterated', event.type.length > 0); break; }
  restart.close();
  await eventually('and restarts', async () => { const { state } = await sprite.getService('web'); return state.status === 'running' && state.pid !== before; });
  await sprite.signalService('web', 'KILL');
  await eventually('a killed service comes back', async () => {
    const { state } = await sprite.getService('web');
    return state.status === 'running' && state.restartCount > 0;
  });
  let logged = '';
  await (await sprite.getServiceLogs('web', { lines: 50 })).processAll((event) => { logged += event.data ?? ''; });
  check('its logs are kept', logged.includes('up') && logged.includes('oops'));

  await (await sprite.createService('base', { cmd: '/bin/sleep', args: ['1000'] }, '0s')).processAll(() => {});
  await (await sprite.createService('top', { cmd: '/bin/sleep', args: ['1000'], needs: ['base'] }, '0s')).processAll(() => {});
  await rejects('a needed service can not be deleted', sprite.deleteService('base'), /409|conflict/i);
  await sprite.deleteService('top');
  await sprite.deleteService('base');
  await sprite.deleteService('web');
  equal('deleted services are gone', await sprite.listServices(), []);
  equal('the check says healthy', (await sprite.check()).status, 'healthy');
}
