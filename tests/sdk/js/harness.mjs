// What all areas share: checks that are counted, and a record of which public methods were called.
//
// The package's own type declarations say what is public. Prototypes are wrapped at run time so that each
// call is noted; nothing of the package is changed.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as delay } from 'node:timers/promises';
import * as sdk from '@fly/sprites';

export { delay };
export let checks = 0;
const called = new Set();

export function check(claim, ok) {
  assert.ok(ok, claim);
  checks += 1;
}

export function equal(claim, found, expected) {
  assert.deepEqual(found, expected, `${claim}: ${JSON.stringify(found)}`);
  checks += 1;
}

export async function rejects(claim, promise, expected) {
  await assert.rejects(promise, expected, claim);
  checks += 1;
}

/** Waits for a state; the limit only ends a test that has failed. */
export async function eventually(claim, condition, limit = 30_000) {
  const deadline = Date.now() + limit;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `not within ${limit} ms: ${claim}`);
    await delay(25);
  }
  checks += 1;
}

/** The first event of a name. */
export function once(emitter, name, limit = 30_000) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${name} within ${limit} ms`)), limit);
    emitter.once(name, (value) => { clearTimeout(timer); resolve(value); });
  });
}

/** Collects a stream's text. */
export function gather(stream) {
  const parts = [];
  stream.on('data', (part) => parts.push(part));
  return {
    bytes: () => Buffer.concat(parts),
    text: () => Buffer.concat(parts).toString(),
    until: (mark, limit) => eventually(`output has ${mark}`, () => Buffer.concat(parts).includes(mark), limit),
  };
}

/** `Class.method` and functions, as the package's declarations have them. */
export function publicMethods() {
  const dist = dirname(fileURLToPath(import.meta.resolve('@fly/sprites')));
  const exported = new Set(Object.keys(sdk));
  const found = new Set();
  const bases = { SpriteListStream: 'NDJSONStream', SessionKillStream: 'NDJSONStream', PortWatcher: 'WebSocketJSONStream', FilesystemWatcher: 'WebSocketJSONStream' };
  const members = new Map();
  for (const file of readdirSync(dist).filter((name) => name.endsWith('.d.ts'))) {
    let owner = null;
    for (const line of readFileSync(join(dist, file), 'utf8').split('\n')) {
      const begins = /^(?:export )?declare (?:abstract )?class (\w+)/.exec(line);
      if (begins) { owner = begins[1]; members.set(owner, new Set()); continue; }
      if (line.startsWith('}')) owner = null;
      const method = /^ {4}(?:static )?(\w+)(?:<[^>]*>)?\(/.exec(line);
      if (owner && method && method[1] !== 'constructor' && !/^ {4}(private|protected)/.test(line)) members.get(owner).add(method[1]);
      const plain = /^export declare function (\w+)/.exec(line);
      if (plain && exported.has(plain[1])) found.add(plain[1]);
    }
  }
  for (const [owner, methods] of members) {
    if (!exported.has(owner)) continue;
    const all = [...methods, ...(members.get(bases[owner]) ?? [])];
    for (const name of all) found.add(`${owner}.${name}`);
  }
  return [...found].sort();
}

/** Notes each call of a public method from now on. */
export function watchCalls() {
  for (const name of publicMethods()) {
    const [owner, method] = name.split('.');
    if (!method) continue;
    const target = typeof sdk[owner].prototype[method] === 'function' ? sdk[owner].prototype : sdk[owner];
    const original = target[method];
    // An inherited method becomes the class's own, so that each class counts for itself.
    target[method] = function noted(...args) {
      called.add(name);
      return original.apply(this, args);
    };
  }
}

export const note = (name) => called.add(name);

/** What was never called, apart from what is excused. */
export function uncalled(excused) {
  return publicMethods().filter((name) => !called.has(name) && !excused.some((rule) => rule.test(name)));
}
