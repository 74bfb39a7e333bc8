import { flushSync } from 'svelte';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Conversation, Message } from '$lib/api/types';
import { OpenConversation } from '$lib/chat/conversation.svelte';

const message = (change: Partial<Message> & Pick<Message, 'id' | 'role'>): Message => ({
  parent_id: null,
  content: change.id,
  attachments: [],
  status: 'complete',
  failure: null,
  finish: null,
  model: null,
  usage: null,
  created_at: 1,
  ...change,
});

const whole = (messages: Message[], leaf_id: string | null): Conversation => ({
  id: 'c',
  title: 'T',
  tags: [],
  created_at: 0,
  updated_at: 0,
  is_pinned: false,
  system: '',
  params: {},
  leaf_id,
  messages,
});

/** What the server answers, by method and end of the path. */
let routes: Record<string, (body: unknown) => unknown> = {};
let asked: [string, unknown][] = [];

beforeEach(() => {
  routes = {};
  asked = [];
  vi.stubGlobal('fetch', async (path: string, { method, body }: RequestInit) => {
    const sent: unknown = typeof body === 'string' ? JSON.parse(body) : undefined;
    const name = `${method} ${path.replace(/^\/api\/chat/, '').replace(/\?.*/, '')}`;
    asked.push([name, sent]);
    const answer = routes[name]?.(sent);
    if (answer === undefined) {
      return new Response('{"error":{"message":"no money"}}', { status: 402 });
    }
    return typeof answer === 'string' ? new Response(answer) : Response.json(answer);
  });
});
afterEach(() => vi.unstubAllGlobals());

const settle = () => vi.waitFor(() => flushSync());
const event = (name: string, data: unknown) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;

const USER = message({ id: 'u1', role: 'user' });
const FIRST = message({ id: 'a1', role: 'assistant', parent_id: 'u1', created_at: 2 });
const RUNNING: Message = { ...FIRST, content: 'Hel', status: 'running' };
const SECOND = message({ id: 'a2', role: 'assistant', parent_id: 'u1', created_at: 3 });

describe('a conversation', () => {
  test('shows the branch of its leaf', () => {
    const open = new OpenConversation(whole([USER, FIRST, SECOND], 'a1'));
    expect(open.path.map(({ id }) => id)).toEqual(['u1', 'a1']);
    expect(open.siblings(open.path[1]!).map(({ id }) => id)).toEqual(['a1', 'a2']);
  });

  test('changes to another branch and says so', async () => {
    routes['PATCH /conversations/c'] = () => whole([], 'a2');
    const open = new OpenConversation(whole([USER, FIRST, SECOND], 'a1'));
    await open.show(open.messages.find(({ id }) => id === 'a2')!);
    expect(open.path.map(({ id }) => id)).toEqual(['u1', 'a2']);
    expect(asked).toEqual([['PATCH /conversations/c', { leaf_id: 'a2' }]]);
  });

  test('shows the branch even where the server cannot be told', async () => {
    const open = new OpenConversation(whole([USER, FIRST, SECOND], 'a1'));
    await open.show(open.messages.find(({ id }) => id === 'a2')!);
    expect(open.last?.id).toBe('a2');
  });

  test('sends a message and reads the answer', async () => {
    const running = message({
      id: 'a3',
      role: 'assistant',
      parent_id: 'u2',
      content: '',
      status: 'running',
    });
    routes['POST /conversations/c/messages'] = () => ({
      user: message({ id: 'u2', role: 'user', parent_id: 'a1', content: 'Hi' }),
      answer: running,
    });
    routes['GET /messages/a3/events'] = () =>
      event('delta', { at: 0, text: 'Hel' }) +
      event('delta', { at: 3, text: 'lo' }) +
      event('done', { ...running, content: 'Hello', status: 'complete', finish: 'stop' });
    const onChange = vi.fn();
    const open = new OpenConversation(whole([USER, FIRST], 'a1'), onChange);
    const sent = open.send('Hi', [{ name: 'a', text: 'b' }]);
    expect(open.pending?.content).toBe('Hi');
    expect(open.isBusy).toBe(true);
    await sent;
    expect(open.pending).toBeNull();
    expect(asked[0]).toEqual([
      'POST /conversations/c/messages',
      { parent_id: 'a1', content: 'Hi', attachments: [{ name: 'a', text: 'b' }] },
    ]);
    await vi.waitFor(() => expect(open.last?.status).toBe('complete'));
    expect(open.last?.content).toBe('Hello');
    expect(open.path.map(({ id }) => id)).toEqual(['u1', 'a1', 'u2', 'a3']);
    expect(open.isBusy).toBe(false);
    expect(onChange).toHaveBeenCalled();
  });

  test('keeps what could not be sent, and sends it again', async () => {
    const open = new OpenConversation(whole([USER, FIRST], 'a1'));
    await open.send('Hi', []);
    expect(open.trouble?.error.status).toBe(402);
    expect(open.trouble?.draft?.content).toBe('Hi');
    expect(open.messages).toHaveLength(2);
    routes['POST /conversations/c/messages'] = () => ({
      user: message({ id: 'u2', role: 'user', parent_id: 'a1' }),
      answer: message({ id: 'a3', role: 'assistant', parent_id: 'u2' }),
    });
    await open.trouble?.retry();
    expect(open.trouble).toBeNull();
    expect(open.last?.id).toBe('a3');
  });

  test('does not say twice what has arrived when its answer was lost', async () => {
    const said = message({ id: 'u2', role: 'user', parent_id: 'a1', content: 'Hi' });
    const answer = message({ id: 'a3', role: 'assistant', parent_id: 'u2' });
    let posts = 0;
    routes['POST /conversations/c/messages'] = () => {
      posts += 1;
      throw new TypeError('network');
    };
    const open = new OpenConversation(whole([USER, FIRST], 'a1'));
    await open.send('Hi', []);
    expect(open.trouble?.error.isOffline).toBe(true);
    routes['GET /conversations/c'] = () => {
      throw new TypeError('network');
    };
    const again = open.trouble?.retry();
    expect(open.isBusy).toBe(true); // and nothing to be pressed twice
    expect(open.trouble).toBeNull();
    await again;
    expect(open.trouble).not.toBeNull();
    expect(open.isBusy).toBe(false);
    routes['GET /conversations/c'] = () => whole([USER, FIRST, said, answer], 'a3');
    await open.trouble?.retry();
    expect(posts).toBe(1);
    expect(open.trouble).toBeNull();
    expect(open.path.map(({ id }) => id)).toEqual(['u1', 'a1', 'u2', 'a3']);

    // The same words again, on purpose.
    await open.send('Hi', []);
    expect(posts).toBe(2);
    routes['GET /conversations/c'] = () => whole([USER, FIRST, said, answer], 'a3');
    routes['POST /conversations/c/messages'] = () => ({
      user: message({ id: 'u4', role: 'user', parent_id: 'a3', content: 'Hi' }),
      answer: message({ id: 'a5', role: 'assistant', parent_id: 'u4' }),
    });
    await open.trouble?.retry();
    expect(open.last?.id).toBe('a5');
  });

  test('tells its speed in tokens, however they are put together', async () => {
    const done: Message = { ...RUNNING, content: 'Hello there', status: 'complete' };
    const now = vi.spyOn(performance, 'now');
    let time = 1000;
    now.mockImplementation(() => time);
    vi.stubGlobal('fetch', async () => {
      const parts = [
        { at: 3, text: 'lo', count: 50 }, // said before this page read along
        { at: 5, text: ' the', count: 4 },
        { at: 9, text: 're', count: 6 },
      ];
      const body = new ReadableStream<Uint8Array>({
        pull(controller) {
          const part = parts.shift();
          time += 1000;
          const text = part ? event('delta', part) : event('done', done);
          controller.enqueue(new TextEncoder().encode(text));
          if (!part) controller.close();
        },
      });
      return new Response(body);
    });
    const open = new OpenConversation(whole([USER, RUNNING], 'a1'));
    await vi.waitFor(() => expect(open.last?.status).toBe('complete'));
    expect(open.last?.speed).toBeCloseTo(5);
    now.mockRestore();
  });

  test('makes an edit a sibling', async () => {
    routes['POST /conversations/c/messages'] = () => ({
      user: message({ id: 'u2', role: 'user', created_at: 9 }),
      answer: message({ id: 'a3', role: 'assistant', parent_id: 'u2' }),
    });
    const open = new OpenConversation(whole([USER, FIRST], 'a1'));
    await open.edit(open.path[0]!, 'other');
    expect(asked[0]?.[1]).toEqual({ parent_id: null, content: 'other' });
    expect(open.siblings(open.path[0]!)).toHaveLength(2);
  });

  test('answers again, continues and stops', async () => {
    routes['POST /messages/a1/regenerate'] = () => ({
      answer: message({ id: 'a9', role: 'assistant', parent_id: 'u1', created_at: 9 }),
    });
    const open = new OpenConversation(whole([USER, FIRST], 'a1'));
    await open.regenerate(open.last!);
    expect(open.path.map(({ id }) => id)).toEqual(['u1', 'a9']);

    const running = message({
      id: 'a9',
      role: 'assistant',
      parent_id: 'u1',
      content: 'a9',
      status: 'running',
    });
    routes['POST /messages/a9/continue'] = () => ({ answer: running });
    routes['POST /messages/a9/stop'] = () => ({ answer: { ...running, status: 'stopped' } });
    routes['GET /messages/a9/events'] = () =>
      event('delta', { at: 2, text: '+' }) +
      event('done', { ...running, content: 'a9+', status: 'stopped' });
    await open.continue(open.last!);
    expect(open.last?.isRunning).toBe(true);
    await open.stop();
    await vi.waitFor(() => expect(open.last?.status).toBe('stopped'));
    expect(open.last?.content).toBe('a9+');
    expect(asked.map(([name]) => name)).toContain('POST /messages/a9/stop');
  });

  test('goes on reading an answer that runs when it is opened', async () => {
    routes['GET /messages/a1/events'] = () =>
      event('delta', { at: 3, text: 'lo' }) +
      event('done', { ...RUNNING, content: 'Hello', status: 'complete' });
    const open = new OpenConversation(whole([USER, RUNNING], 'a1'));
    await vi.waitFor(() => expect(open.last?.content).toBe('Hello'));
    await settle();
    expect(open.last?.status).toBe('complete');
  });

  test('takes what another page has added', async () => {
    const open = new OpenConversation(whole([USER, FIRST], 'a1'));
    const shown = open.last;
    routes['GET /conversations/c'] = () => whole([USER, FIRST, SECOND], 'a2');
    await open.refresh();
    expect(open.last?.id).toBe('a2');
    expect(open.messages).toContain(shown);
  });

  test('is not told by an old answer that a message runs again', async () => {
    const done: Message = { ...RUNNING, content: 'Hello', status: 'complete' };
    routes['GET /messages/a1/events'] = () =>
      event('delta', { at: 3, text: 'lo' }) + event('done', done);
    const open = new OpenConversation(whole([USER, RUNNING], 'a1'));
    routes['GET /conversations/c'] = () => {
      open.last!.take(done); // while the answer to this was on its way
      return whole([USER, RUNNING], 'a1');
    };
    await open.refresh();
    expect(open.last?.status).toBe('complete');
    expect(open.last?.content).toBe('Hello');
    open.close();
  });

  test('does not lose text that the stream knew already', () => {
    const open = new OpenConversation(whole([USER, { ...RUNNING, content: 'Hello wor' }], 'a1'));
    open.last!.take(RUNNING);
    expect(open.last?.content).toBe('Hello wor');
    open.close();
  });
});
