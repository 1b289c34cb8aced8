// The official Node SDK against a batch server: does what a user does, and prints what it saw as one JSON object.

import { Buffer } from 'node:buffer';
import OpenAI, { toFile } from 'openai';

const base = process.env.OPENAI_BASE_URL;
const key = process.env.OPENAI_API_KEY;
const client = new OpenAI({ baseURL: base, apiKey: key, maxRetries: 0, timeout: 20_000 });
const endpoint = '/v1/chat/completions';
const ends = ['completed', 'failed', 'expired', 'cancelled'];
const seen = {};

const rows = (count) =>
  Buffer.from(
    Array.from({ length: count }, (_, n) => {
      const body = { model: 'gpt-4o-mini', messages: [{ role: 'user', content: `question ${n}` }] };
      return JSON.stringify({ custom_id: `row-${n}`, method: 'POST', url: endpoint, body }) + '\n';
    }).join(''),
  );

const faults = (script) =>
  fetch(base.replace(/\/v1$/, '/control/faults'), {
    method: 'POST',
    headers: { authorization: `Bearer ${key}` },
    body: JSON.stringify(script),
  });

const upload = async (count) =>
  client.files.create({ file: await toFile(rows(count), 'rows.jsonl'), purpose: 'batch' });
const create = (file, more = {}) =>
  client.batches.create({ input_file_id: file.id, endpoint, completion_window: '24h', ...more });

async function ended(batch) {
  while (!ends.includes(batch.status)) batch = await client.batches.retrieve(batch.id);
  return batch;
}

async function all(pages) {
  const ids = [];
  for await (const each of pages) ids.push(each.id);
  return ids;
}

// What a call that must fail is told: the SDK's class, and the fields of the envelope.
async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    return { kind: error.constructor.name, status, code, param, type, traced: Boolean(requestID), message: error.message };
  }
}

async function files() {
  const file = await upload(3);
  const asked = { after: { anchor: 'created_at', seconds: 3600 } };
  const short = await client.files.create({ file: await toFile(rows(1), 'b.jsonl'), purpose: 'batch', expires_after: asked.after });
  const made = [short.id, file.id];
  const { data, response, request_id: requestId } = await client.files.retrieve(file.id).withResponse();
  seen.files = {
    file,
    processed: (await client.files.waitForProcessing(file.id)).status,
    expires: short.expires_at - short.created_at,
    listed: await all(client.files.list({ limit: 1, purpose: 'batch' })),
    made,
    same: (await (await client.files.content(file.id)).text()) === rows(3).toString(),
    headers: {
      id: data.id === file.id && requestId === response.headers.get('x-request-id'),
      version: response.headers.get('openai-version'),
      limits: [...response.headers.keys()].filter((name) => name.startsWith('x-ratelimit')),
    },
    deleted: await client.files.delete(short.id),
  };
}

async function batches() {
  const file = await upload(20);
  const created = await create(file, { metadata: { by: 'node' }, output_expires_after: { anchor: 'created_at', seconds: 3600 } });
  const batch = await ended(created);
  const lines = (await (await client.files.content(batch.output_file_id)).text()).trimEnd().split('\n').map((line) => JSON.parse(line));
  const made = [created.id];
  for (let n = 0; n < 4; n += 1) made.unshift((await create(file)).id);
  seen.batches = {
    created,
    batch,
    answers: Object.fromEntries(lines.map((line) => [line.custom_id, line.response.body.choices[0].message.content])),
    made,
    listed: await all(client.batches.list({ limit: 2 })),
  };
}

async function cancelling() {
  await faults({ batches: [{ do: 'stuck', state: 'in_progress', times: 1 }] });
  const batch = await create(await upload(3));
  const first = await client.batches.cancel(batch.id);
  const last = await ended(first);
  await faults({});
  seen.cancel = { first: first.status, last: last.status, again: (await client.batches.cancel(batch.id)).status };
}

async function parts() {
  const data = rows(50);
  const asked = { bytes: data.length, filename: 'parts.jsonl', mime_type: 'application/jsonl', purpose: 'batch' };
  const begun = await client.uploads.create(asked);
  const pieces = [];
  for (const piece of [data.subarray(0, 4000), data.subarray(4000)])
    pieces.push(await client.uploads.parts.create(begun.id, { data: await toFile(piece, 'part') }));
  const done = await client.uploads.complete(begun.id, { part_ids: pieces.map((piece) => piece.id) });
  const other = await client.uploads.cancel((await client.uploads.create(asked)).id);
  const batch = await ended(await create(done.file));
  seen.parts = {
    states: [begun.status, done.status, other.status],
    object: pieces[0].object,
    counts: batch.request_counts,
    refused: await failure(() => client.uploads.complete(begun.id, { part_ids: [] })),
  };
}

async function failures() {
  const done = await ended(await create(await upload(1)));
  const wrong = new OpenAI({ baseURL: base, apiKey: 'sk-wrong', maxRetries: 0 });
  const answers = (status, more = {}) => ({ http: [{ on: 'list', do: 'answer', status, times: 1, ...more }] });
  const scripted = async (script) => {
    await faults(script);
    return failure(() => client.batches.list());
  };
  seen.failures = {
    no_batch: await failure(() => client.batches.retrieve('batch_x')),
    no_file: await failure(() => client.files.content('file-x')),
    bad_endpoint: await failure(() => create(done, { endpoint: '/v1/poems' })),
    bad_metadata: await failure(() => create({ id: 'file-x' }, { metadata: { tags: ['a'] } })),
    conflict: await failure(() => client.batches.cancel(done.id)),
    bad_key: await failure(() => wrong.models.list()),
    too_many: await scripted(answers(429, { code: 'rate_limit_exceeded' })),
    no_money: await scripted(answers(429, { code: 'insufficient_quota' })),
    forbidden: await scripted(answers(403)),
    unprocessable: await scripted(answers(422)),
    broken: await scripted(answers(503)),
    dropped: await scripted({ http: [{ on: 'list', do: 'drop', times: 1 }] }),
  };
  await faults({ http: [{ on: 'list', do: 'answer', status: 429, retry_after_s: 1, times: 1 }] });
  const patient = new OpenAI({ baseURL: base, apiKey: key, maxRetries: 1 });
  seen.retried = (await patient.batches.list({ limit: 1 })).data.length;
  await faults({});
}

for (const step of [files, batches, cancelling, parts, failures]) await step();
console.log(JSON.stringify(seen));
