// What comes later: each call is answered 501 in the form of all errors, and never 404.
import { rejects } from './harness.mjs';

export default async function later({ client, name }) {
  const sprite = client.sprite(name);
  const not_yet = /501|not offer|not_implemented/i;
  for (const [what, call] of Object.entries({
    getNetworkPolicy: () => sprite.getNetworkPolicy(),
    updateNetworkPolicy: () => sprite.updateNetworkPolicy({ rules: [{ domain: '*', action: 'allow' }] }),
    getPrivilegesPolicy: () => sprite.getPrivilegesPolicy(),
    updatePrivilegesPolicy: () => sprite.updatePrivilegesPolicy({ profile: 'minimal' }),
    deletePrivilegesPolicy: () => sprite.deletePrivilegesPolicy(),
    getResourcesPolicy: () => sprite.getResourcesPolicy(),
    updateResourcesPolicy: () => sprite.updateResourcesPolicy({ memory: { limitMB: 256 } }),
    deleteResourcesPolicy: () => sprite.deleteResourcesPolicy(),
  })) await rejects(`${what} says that it comes later`, call(), not_yet);
  for (const call of [() => client.upgradeSprite(name), () => sprite.upgrade(), () => client.restartSprite(name), () => sprite.restart()]) {
    // These may be there already.
    await call().catch((error) => { if (!not_yet.test(`${error.statusCode} ${error.message}`)) throw error; });
  }
}
