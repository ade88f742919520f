// Node's own HTTP, HTTP/2 and WebSocket clients against a sprite's URL:
// node url.mjs HTTP_PORT HTTPS_PORT CA_FILE HOST. Prints "passed N checks".
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import WebSocket from 'ws';

const [port, tlsPort, caFile, host] = process.argv.slice(2);
let checks = 0;
const check = (claim, ok) => { assert.ok(ok, claim); checks += 1; };

const agent = new http.Agent({ keepAlive: true });
const request = (path, { method = 'GET', body, headers = {} } = {}) => new Promise((resolve, reject) => {
  const sent = http.request({ host: '127.0.0.1', port, path, method, agent, headers: { Host: host, ...headers } }, (answer) => {
    const chunks = [];
    answer.on('data', (chunk) => chunks.push(chunk));
    answer.on('end', () => resolve({ status: answer.statusCode, body: Buffer.concat(chunks), headers: answer.headers }));
    answer.on('error', reject);
  });
  sent.on('error', reject);
  sent.end(body);
});

check('a keep-alive connection serves', (await request('/')).body.toString() === 'ok\n');
check('and serves again', (await request('/')).status === 200);
const upload = await request('/upload', { method: 'POST', body: Buffer.alloc(5 << 20) });
check('an upload arrives whole', JSON.parse(upload.body).length === 5 << 20);
const chunked = await request('/upload', { method: 'PUT', body: 'x', headers: { 'Transfer-Encoding': 'chunked' } });
check('a chunked one too', JSON.parse(chunked.body).length === 1);
check('a download comes whole', (await request('/download?bytes=5000000')).body.length === 5_000_000);
check('a slow answer is waited for', (await request('/slow?ms=1500')).body.toString() === 'slow\n');
agent.destroy();

const session = http2.connect(`https://${host}:${tlsPort}`, {
  ca: readFileSync(caFile), servername: host, lookup: (_, options, done) => done(null, options.all ? [{ address: '127.0.0.1', family: 4 }] : '127.0.0.1', 4),
});
const stream = (path) => new Promise((resolve, reject) => {
  const sent = session.request({ ':path': path });
  let status; let text = '';
  sent.on('response', (headers) => { status = headers[':status']; });
  sent.setEncoding('utf8');
  sent.on('data', (chunk) => { text += chunk; });
  sent.on('end', () => resolve({ status, text }));
  sent.on('error', reject);
  sent.end();
});
const answers = await Promise.all(Array.from({ length: 50 }, () => stream('/')));
check('fifty HTTP/2 streams at once', answers.every(({ status, text }) => status === 200 && text === 'ok\n'));
session.close();

const socket = new WebSocket(`ws://127.0.0.1:${port}/ws`, { headers: { Host: host } });
await new Promise((resolve, reject) => { socket.on('open', resolve); socket.on('error', reject); });
const echo = (message) => new Promise((resolve) => { socket.once('message', resolve); socket.send(message); });
check('a WebSocket echoes text', (await echo('hello')).toString() === 'hello');
check('and a megabyte', (await echo(Buffer.alloc(1 << 20, 7))).length === 1 << 20);
const closed = new Promise((resolve) => { socket.on('close', resolve); });
socket.close(1000);
check('and closes cleanly', (await closed) === 1000);
console.log(`passed ${checks} checks`);
