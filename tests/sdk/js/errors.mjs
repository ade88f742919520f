// Errors as the package reads them, and control connections, which are not offered.
import { APIError, SpritesClient, parseAPIError } from '@fly/sprites';
import { check, equal, note, rejects } from './harness.mjs';

export default async function errors({ client, baseURL, token, name }) {
  await rejects('an error has its status, code and message', client.createSprite(name), (error) => {
    check('it is an APIError', error instanceof APIError);
    equal('its status', error.statusCode, 409);
    equal('its code', error.errorCode, 'name_taken');
    equal('it is about no limit', [error.isRateLimitError(), error.isCreationRateLimited(), error.isConcurrentLimitExceeded()], [false, false, false]);
    equal('and asks for no wait', error.getRetryAfterSeconds(), undefined);
    return error.message.length > 10;
  });
  const response = await fetch(`${baseURL}/v1/sprites/none`, { headers: { Authorization: `Bearer ${token}` } });
  const parsed = parseAPIError(response.status, await response.text(), Object.fromEntries(response.headers));
  note('parseAPIError');
  equal('bodies are those of the protocol', [parsed.statusCode, parsed.errorCode], [404, 'not_found']);

  const controlled = new SpritesClient(token, { baseURL, controlMode: true });
  const sprite = controlled.sprite(name);
  equal('control is asked for', sprite.useControlMode(), true);
  equal('and a command runs all the same', (await sprite.execFile('echo', ['plain'])).stdout, 'plain\n');
  await rejects('as there is no control connection', sprite.getControlConnection(), Error);
  equal('none is kept', sprite.hasControlConnection(), false);
  sprite.closeControlConnection();
}
