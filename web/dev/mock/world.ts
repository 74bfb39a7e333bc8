/** All that the mock knows. It forgets everything when it ends. */

import { EventEmitter } from 'node:events';
import type {
  ApiKey,
  AuditEntry,
  Balance,
  Code,
  Conversation,
  DailyUsage,
  Message,
  Model,
  Preset,
  Price,
  Token,
  Transfer,
  User,
} from '../../src/lib/api/types.ts';
import { HOSTILE, MATH, SHORT, SHOWCASE } from './texts.ts';

const DAY = 86_400_000;

export const MODELS: Model[] = [
  {
    name: 'pocket-chat',
    max_context: 4096,
    description: 'The shipped model, for trying things out',
  },
  { name: 'deepseek-v2-lite-chat', max_context: 32768, description: '16B parameters, 2.4B active' },
  { name: 'deepseek-coder-v2-lite', max_context: 131072, description: 'For code' },
];

export class World {
  #ids = 0;
  readonly events = new EventEmitter().setMaxListeners(0);
  readonly conversations = new Map<string, Conversation>();
  readonly tokens = new Map<string, Token[]>();
  readonly users: User[] = [];
  readonly keys: ApiKey[] = [];
  readonly codes: Code[] = [];
  readonly prices: Price[] = [];
  readonly transfers: Transfer[] = [];
  readonly audit: AuditEntry[] = [];
  readonly usage: DailyUsage[] = [];
  presets: Preset[] = [];
  /** Who uses the site; null at the door. MOCK_AS=guest or nobody begins with another. */
  me: (User & { guest: boolean }) | null;
  balance: Balance = {
    granted: 3_120_450,
    paid: 20_000_000,
    held: 12_000,
    spent: 1_879_550,
    unlimited: false,
    status: 'active',
    total: 23_120_450,
    available: 23_108_450,
  };
  settings: Record<string, string | number | boolean | null> = {
    sign_up_open: true,
    sign_up_grant: 5_000_000,
    currency: 'USD',
    session_ms: 30 * DAY,
    requests_per_minute: null,
    tokens_per_minute: 200_000,
    max_concurrent: 16,
  };

  constructor() {
    this.#people();
    const as = process.env['MOCK_AS'] ?? 'admin';
    this.me = as === 'nobody' ? null : { ...this.users[0]!, guest: as === 'guest' };
    if (as === 'guest') this.me = { ...this.me!, role: 'user' };
    this.#money();
    this.#talk();
  }

  id(kind: string): string {
    return `${kind}_${(++this.#ids).toString(36).padStart(4, '0')}`;
  }

  message(change: Partial<Message> & Pick<Message, 'role' | 'content' | 'parent_id'>): Message {
    const isAnswer = change.role === 'assistant';
    return {
      id: this.id('msg'),
      attachments: [],
      status: 'complete',
      failure: null,
      finish: isAnswer ? 'stop' : null,
      model: isAnswer ? MODELS[0]!.name : null,
      usage: isAnswer ? usageOf(change.content) : null,
      created_at: Date.now() + this.#ids,
      ...change,
    };
  }

  conversation(title: string, change: Partial<Conversation> = {}): Conversation {
    const now = Date.now();
    const made: Conversation = {
      id: this.id('chat'),
      title,
      tags: [],
      created_at: now,
      updated_at: now,
      is_pinned: false,
      system: '',
      params: {},
      leaf_id: null,
      messages: [],
      ...change,
    };
    this.conversations.set(made.id, made);
    return made;
  }

  say(to: Conversation, role: Message['role'], content: string, change: Partial<Message> = {}) {
    const message = this.message({ role, content, parent_id: to.leaf_id, ...change });
    to.messages.push(message);
    to.leaf_id = message.id;
    return message;
  }

  findMessage(id: string): { conversation: Conversation; message: Message } | null {
    for (const conversation of this.conversations.values()) {
      const message = conversation.messages.find((one) => one.id === id);
      if (message) return { conversation, message };
    }
    return null;
  }

  #talk(): void {
    const now = Date.now();
    const merge = this.conversation('Merging two sorted lists', {
      id: 'chat_merge',
      tags: ['python'],
      is_pinned: true,
      updated_at: now - 5 * 60_000,
      params: { model: MODELS[1]!.name, temperature: 0.3, logprobs: true },
    });
    const ask = this.say(
      merge,
      'user',
      'How do I merge two sorted lists? With tests in mind, please.',
    );
    const other = this.message({ role: 'assistant', content: SHORT, parent_id: ask.id });
    merge.messages.push(other);
    const answer = this.say(merge, 'assistant', SHOWCASE, { parent_id: ask.id });
    this.tokens.set(answer.id, tokensOf(SHOWCASE));

    const math = this.conversation('The gradient of softmax', {
      id: 'chat_math',
      tags: ['math'],
      updated_at: now - 3 * 3_600_000,
    });
    this.say(math, 'user', 'Derive the softmax gradient step by step');
    this.say(math, 'assistant', MATH);

    const failing = this.conversation('What can go wrong', {
      id: 'chat_errors',
      updated_at: now - 5 * 3_600_000,
      system: 'Answer in one sentence.',
    });
    const codes = ['context_length', 'no_money', 'overloaded', 'interrupted'] as const;
    for (const code of codes) {
      this.say(
        failing,
        'user',
        `Show me ${code}`,
        code === 'overloaded'
          ? { attachments: [{ name: 'notes.txt', text: 'Some notes\nin a file' }] }
          : {},
      );
      this.say(failing, 'assistant', code === 'interrupted' ? 'It was about to say' : '', {
        status: 'failed',
        finish: null,
        usage: null,
        failure: { code, message: `Details about ${code}` },
      });
    }
    const hostile = this.conversation('<img src=x onerror=alert(1)>', {
      id: 'chat_hostile',
      tags: ['<b>x</b>'],
      updated_at: now - DAY,
    });
    this.say(hostile, 'user', '<script>alert("user")</script>');
    this.say(hostile, 'assistant', HOSTILE);

    const long = this.conversation('Five hundred messages', {
      id: 'chat_long',
      updated_at: now - 2 * DAY,
    });
    for (let i = 0; i < 250; i++) {
      this.say(long, 'user', `Question ${i + 1}: how does attention scale?`);
      this.say(long, 'assistant', i % 5 === 0 ? SHOWCASE : i % 3 === 0 ? MATH : SHORT);
    }
    const titles = [
      'Reading safetensors by hand',
      'Routing tokens to experts',
      'A haiku about caches',
      'RoPE with YaRN scaling',
      'Why is my loss NaN?',
      'Regex for semantic versions',
      'Block tables explained',
      '解释多头潜在注意力',
      'Rewriting the README',
      'A trip to Hangzhou',
    ];
    titles.forEach((title, i) => {
      const one = this.conversation(title, {
        updated_at: now - (i + 1) * 1.7 * DAY,
        tags: i % 4 === 0 ? ['model'] : [],
      });
      this.say(one, 'user', title);
      this.say(one, 'assistant', SHORT);
    });
    this.presets = [
      {
        id: 'preset_1',
        name: 'Precise',
        system: 'Be brief and exact.',
        params: { temperature: 0 },
      },
      {
        id: 'preset_2',
        name: 'Translator',
        system: 'Translate into English.',
        params: { temperature: 0.3 },
      },
    ];
  }

  #people(): void {
    const names = ['ada', 'grace', 'alan', 'edsger', 'barbara', 'donald', 'tony', 'leslie'];
    names.forEach((name, i) => {
      this.users.push({
        id: this.id('user'),
        account_id: this.id('acct'),
        email: `${name}@example.org`,
        role: i === 0 ? 'admin' : 'user',
        status: i === 4 ? 'suspended' : 'active',
        created_at: Date.now() - (90 - i * 9) * DAY,
      });
    });
  }

  #money(): void {
    const now = Date.now();
    const limits = {
      models: null,
      budget: null,
      budget_period: 'total',
      requests_per_minute: null,
      tokens_per_minute: null,
      max_concurrent: null,
      expires_at: null,
    };
    const made = [
      { name: 'laptop', prefix: 'sk-7Qm2', spent: 812_400, last_used_at: now - 40 * 60_000 },
      {
        name: 'nightly evaluation',
        prefix: 'sk-Zk19',
        spent: 1_020_150,
        last_used_at: now - 9 * 3_600_000,
        budget: 5_000_000,
        budget_period: 'month',
        requests_per_minute: 60,
      },
      {
        name: 'old server',
        prefix: 'sk-Ua04',
        spent: 47_000,
        last_used_at: now - 40 * DAY,
        revoked_at: now - 20 * DAY,
      },
    ];
    for (const key of made) {
      this.keys.push({
        ...limits,
        id: this.id('key'),
        created_at: now - 60 * DAY,
        revoked_at: null,
        held: 0,
        ...key,
      });
    }
    MODELS.forEach(({ name }, i) => {
      this.prices.push({
        id: i + 1,
        model: name,
        version: 1,
        input: [10_000, 140_000, 140_000][i]!,
        cached_input: [1_000, 14_000, 14_000][i]!,
        output: [20_000, 280_000, 280_000][i]!,
      });
    });
    const kinds = [
      ['grant', 'sign-up:acct_1', 'granted', 5_000_000],
      ['top_up', 'admin:receipt-1041', 'paid', 20_000_000],
      ['charge', 'charge:req', 'spent', 1_240],
    ] as const;
    for (let i = 0; i < 40; i++) {
      const [kind, cause, book, amount] = kinds[i === 39 ? 0 : i % 9 === 8 ? 1 : 2]!;
      const moves: Record<string, number> =
        kind === 'charge'
          ? { granted: -(amount + i * 37), spent: amount + i * 37 }
          : { issued: -amount, [book]: amount };
      this.transfers.push({
        id: 400 - i,
        kind,
        cause: kind === 'charge' ? `charge:req_${i}` : cause,
        memo: kind === 'top_up' ? 'Invoice 1041' : '',
        created_at: now - i * 5 * 3_600_000,
        moves,
        model: kind === 'charge' ? MODELS[0]!.name : null,
      });
    }
    this.codes.push(
      {
        id: 'code_1',
        prefix: 'GIFT-8K',
        book: 'granted',
        amount: 2_000_000,
        max_uses: 50,
        uses: 12,
        expires_at: now + 30 * DAY,
        revoked_at: null,
      },
      {
        id: 'code_2',
        prefix: 'PAID-2M',
        book: 'paid',
        amount: 10_000_000,
        max_uses: 1,
        uses: 1,
        expires_at: null,
        revoked_at: null,
      },
    );
    for (let day = 29; day >= 0; day--) {
      for (const [k, key] of ['', this.keys[0]!.id, this.keys[1]!.id].entries()) {
        for (const [m, { name }] of MODELS.entries()) {
          const size =
            Math.abs(Math.sin(day * 1.7 + k * 2.1 + m * 3.3)) * (k + 1) * (m === 1 ? 3 : 1);
          if (size < 0.25) continue;
          const prompt = Math.round(size * 41_000);
          const completion = Math.round(size * 9_000);
          this.usage.push({
            day: new Date(now - day * DAY).toISOString().slice(0, 10),
            account_id: this.users[(day + k) % 4]!.account_id,
            key_id: key,
            model: name,
            requests: Math.round(size * 22),
            prompt_tokens: prompt,
            cached_tokens: Math.round(prompt * 0.55),
            completion_tokens: completion,
            charge: Math.round(prompt * 0.077 + completion * 0.28),
          });
        }
      }
    }
    for (let i = 0; i < 30; i++) {
      this.audit.push({
        id: 900 - i,
        at: now - i * 7_200_000,
        actor: this.users[0]!.id,
        actor_email: this.users[0]!.email,
        action: ['key.create', 'user.status', 'price.set', 'account.top_up', 'setting.change'][
          i % 5
        ]!,
        subject: this.users[i % 8]!.id,
        subject_email: this.users[i % 8]!.email,
        detail: { value: i },
      });
    }
  }
}

export function usageOf(text: string) {
  const completion_tokens = Math.max(1, Math.round(text.length / 3.6));
  return {
    prompt_tokens: 812,
    cached_tokens: 640,
    completion_tokens,
    seconds: completion_tokens / 42,
  };
}

/** Words with made-up probabilities. */
export function tokensOf(text: string): Token[] {
  return (text.match(/\s*\S+|\s+/g) ?? []).map((word, i) => {
    const p = [0.99, 0.97, 0.88, 0.62, 0.98, 0.35, 0.96, 0.07][(i * 7 + word.length) % 8]!;
    const logprob = Math.log(p);
    return {
      text: word,
      logprob,
      top: [
        [word, logprob],
        [' other', Math.log((1 - p) / 2)],
        [' word', Math.log((1 - p) / 3)],
      ],
    };
  });
}
