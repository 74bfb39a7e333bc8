import type { Conversation, Message, Params } from '../../src/lib/api/types.ts';
import {
  Fault,
  openEvents,
  sendEvent,
  sendFile,
  sleep,
  type Exchange,
  type Routes,
} from './exchange.ts';
import { MATH, SHORT, SHOWCASE } from './texts.ts';
import { MODELS, tokensOf, usageOf, type World } from './world.ts';

/** Milliseconds for a piece of an answer; MOCK_PACE=4 makes a fast model. */
const PACE = Number(process.env['MOCK_PACE'] ?? 25);

export function chatRoutes(world: World): Routes {
  const whole = (id: string): Conversation => {
    const found = world.conversations.get(id);
    if (!found) throw new Fault(404, 'No such conversation');
    return found;
  };
  const part = (id: string) => {
    const found = world.findMessage(id);
    if (!found) throw new Fault(404, 'No such message');
    return found;
  };
  const run = (conversation: Conversation, answer: Message, text: string) =>
    void speak(world, conversation, answer, text);

  return {
    'GET /api/site': () => ({
      guest: world.me?.guest ?? false,
      sign_up: true,
      user: world.me && { email: world.me.email, role: world.me.role },
      version: '0.1.0',
    }),
    'GET /api/chat/models': () => ({ models: MODELS }),
    'GET /api/chat/conversations': ({ query }) => list(world, query),
    'POST /api/chat/conversations': ({ body, response }: Exchange<Partial<Conversation>>) => {
      response.statusCode = 201;
      return world.conversation(body.title ?? '', body);
    },
    'GET /api/chat/conversations/:id': ({ params }) => whole(params['id']!),
    'PATCH /api/chat/conversations/:id': ({ params, body }: Exchange<Partial<Conversation>>) => {
      const { messages: _, ...short } = Object.assign(whole(params['id']!), body);
      return short;
    },
    'DELETE /api/chat/conversations/:id': ({ params }) => {
      world.conversations.delete(whole(params['id']!).id);
    },
    'POST /api/chat/conversations/:id/messages': async ({
      params,
      body,
      response,
    }: Exchange<Pick<Message, 'parent_id' | 'content'> & Partial<Message>>) => {
      const conversation = whole(params['id']!);
      await sleep(120);
      if (body.content.includes('#busy'))
        throw new Fault(429, 'Rate limit reached: requests per minute');
      if (body.content.includes('#broke')) throw new Fault(402, 'Insufficient Balance');
      conversation.leaf_id = body.parent_id;
      const user = world.say(conversation, 'user', body.content, body);
      const answer = world.say(conversation, 'assistant', '', {
        status: 'running',
        finish: null,
        usage: null,
      });
      conversation.title ||= body.content.slice(0, 60);
      conversation.updated_at = Date.now();
      run(conversation, answer, choose(body.content));
      response.statusCode = 201;
      return { user, answer };
    },
    'POST /api/chat/messages/:id/regenerate': ({ params }) => {
      const { conversation, message } = part(params['id']!);
      const { parent_id } = message;
      const answer = world.say(conversation, 'assistant', '', {
        parent_id,
        status: 'running',
        finish: null,
        usage: null,
      });
      run(conversation, answer, SHORT);
      return { answer };
    },
    'POST /api/chat/messages/:id/continue': ({ params }) => {
      const { conversation, message } = part(params['id']!);
      Object.assign(message, { status: 'running', failure: null, finish: null });
      run(conversation, message, ` and so it goes on.\n\n${SHORT}`);
      return { answer: message };
    },
    'POST /api/chat/messages/:id/stop': ({ params }) => {
      const { message } = part(params['id']!);
      message.status = 'stopped';
      world.events.emit(message.id);
      return { answer: message };
    },
    'GET /api/chat/messages/:id/events': async ({ params, query, request, response }) => {
      const { message } = part(params['id']!);
      openEvents(response);
      let at = Number(query.get('from') ?? 0);
      let isGone = false;
      request.on('close', () => (isGone = true));
      while (!isGone) {
        const text = [...message.content].slice(at).join('');
        if (text) {
          sendEvent(response, 'delta', { at, text });
          at += [...text].length;
        }
        if (message.status !== 'running') break;
        await new Promise((done) => world.events.once(message.id, done));
      }
      sendEvent(response, 'done', message);
      response.end();
    },
    'GET /api/chat/messages/:id/tokens': ({ params }) => {
      const { message } = part(params['id']!);
      return { tokens: world.tokens.get(message.id) ?? tokensOf(message.content) };
    },
    'GET /api/chat/conversations/:id/export': ({ params, query, response }) => {
      const found = whole(params['id']!);
      if (query.get('format') === 'json') {
        sendFile(response, 'chat.json', 'application/json', JSON.stringify(found, null, 2));
        return;
      }
      const text = found.messages
        .map(({ role, content }) => `<!-- dsv2 ${role} -->\n## ${role}\n\n${content}\n`)
        .join('\n');
      const head = `# ${found.title}\n\n<!-- dsv2 chat -->\n\n`;
      sendFile(response, 'chat.md', 'text/markdown', head + text);
    },
    'GET /api/chat/export': ({ response }) => {
      const all = { conversations: [...world.conversations.values()] };
      sendFile(response, 'chats.json', 'application/json', JSON.stringify(all));
    },
    'POST /api/chat/import': ({
      body,
    }: Exchange<Conversation & { conversations?: Conversation[] }>) => {
      const given = body.conversations ?? [body];
      if (given.some((one) => !Array.isArray(one.messages))) {
        throw new Fault(400, 'conversations[0].messages is missing');
      }
      return {
        conversations: given.map((one) =>
          world.conversation(one.title, { ...one, id: world.id('chat') }),
        ),
      };
    },
    'GET /api/chat/presets': () => ({ presets: world.presets }),
    'POST /api/chat/presets': ({
      body,
    }: Exchange<{ name: string; system: string; params: Params }>) => {
      const made = { id: world.id('preset'), ...body };
      world.presets = [...world.presets, made];
      return made;
    },
    'PATCH /api/chat/presets/:id': ({ params, body }) =>
      Object.assign(
        world.presets.find(({ id }) => id === params['id'])!,
        body,
      ),
    'DELETE /api/chat/presets/:id': ({ params }) => {
      world.presets = world.presets.filter(({ id }) => id !== params['id']);
    },
    'POST /api/chat/fill': async ({ request, response }) => {
      openEvents(response);
      let isGone = false;
      request.on('close', () => (isGone = request.destroyed && !request.complete));
      const pieces =
        'if n < 2:\n        return n\n    a, b = 0, 1\n    for _ in range(n - 1):\n        a, b = b, a + b'.match(
          /\s*\S+/g,
        ) ?? [];
      for (const text of pieces) {
        if (isGone) return;
        sendEvent(response, 'delta', { text });
        await sleep(PACE * 2);
      }
      sendEvent(response, 'done', { usage: usageOf(pieces.join('')), finish: 'stop' });
      response.end();
    },
  };
}

function choose(content: string): string {
  if (/softmax|math|推导/i.test(content)) return MATH;
  return /python|code|list|列表/i.test(content) ? SHOWCASE : SHORT;
}

async function speak(world: World, conversation: Conversation, answer: Message, text: string) {
  await sleep(500);
  for (const piece of text.match(/\s*\S{1,6}|\s+/g) ?? []) {
    if (answer.status !== 'running') break;
    answer.content += piece;
    world.events.emit(answer.id);
    await sleep(PACE);
  }
  if (answer.status === 'running') {
    answer.status = 'complete';
    answer.finish = 'stop';
  }
  answer.usage = usageOf(answer.content);
  conversation.updated_at = Date.now();
  world.events.emit(answer.id);
}

function list(world: World, query: URLSearchParams) {
  const words = (query.get('query') ?? '').toLowerCase();
  const tag = query.get('tag');
  const found = [...world.conversations.values()]
    .filter((one) => !tag || one.tags.includes(tag))
    .filter((one) => JSON.stringify([one.title, one.messages]).toLowerCase().includes(words))
    .sort((a, b) => Number(b.is_pinned) - Number(a.is_pinned) || b.updated_at - a.updated_at)
    .map(({ messages: _, system: __, params: ___, ...short }) => short);
  const tags = new Set([...world.conversations.values()].flatMap((one) => one.tags));
  return { conversations: found, next: null, tags: [...tags].sort() };
}
