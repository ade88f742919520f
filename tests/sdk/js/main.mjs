// Drives the published @fly/sprites, unmodified, over its whole public surface:
// node main.mjs BASE_URL TOKEN COMPATIBILITY.md. Prints "passed N checks".
import { readFileSync } from 'node:fs';
import { SpritesClient } from '@fly/sprites';
import * as harness from './harness.mjs';
import sprites from './sprites.mjs';
import exec from './exec.mjs';
import sessions from './sessions.mjs';
import files from './files.mjs';
import proxy from './proxy.mjs';
import ports from './ports.mjs';
import services from './services.mjs';
import checkpoints from './checkpoints.mjs';
import later from './later.mjs';
import errors from './errors.mjs';
import rules from './rules.mjs';

const [baseURL, token, table] = process.argv.slice(2);
// What can't be called here, and why: see docs/compatibility.md.
const EXCUSED = [
  /^(ControlConnection|OpConn)\./, // there are no control connections
  /^SpritesClient\.createToken$/, // the vendor's host is written into it
];

harness.watchCalls();
const client = new SpritesClient(token, { baseURL });
const world = { client, baseURL, token, name: `js-${Date.now()}` };
const failures = [];
for (const area of [sprites, exec, sessions, files, proxy, ports, services, checkpoints, later, errors, rules]) {
  const [before, began] = [harness.checks, Date.now()];
  try {
    await area(world);
    console.log(`${area.name}: ${harness.checks - before} checks, ${Date.now() - began} ms`);
  } catch (error) {
    failures.push(area.name);
    console.error(`${area.name}, after ${harness.checks - before} checks: ${error.stack}`);
  }
}
await client.deleteSprite(world.name);
if (!failures.length) {
  const missed = harness.uncalled(EXCUSED);
  if (missed.length) { failures.push('coverage'); console.error(`never called: ${missed.join(', ')}`); }
}
const documented = readFileSync(table, 'utf8');
const silent = harness.publicMethods().filter((method) => !documented.includes(`\`${method}\``));
if (silent.length) { failures.push('documentation'); console.error(`not in the table: ${silent.join(', ')}`); }
if (failures.length) { console.error(`failed: ${failures.join(', ')}`); process.exit(1); }
console.log(`passed ${harness.checks} checks`);
process.exit(0);
