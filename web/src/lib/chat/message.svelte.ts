/** A message that is shown, and the stream that its text may still come from. */

import { follow, type FollowState } from '$lib/api/follow';
import type { Attachment, Failure, Message, Status, Token, TokenUsage } from '$lib/api/types';
import { countCodePoints } from './codePoints';
import { FrameBuffer } from './frames';

interface Piece {
  text: string;
  tokens: Token[] | undefined;
}

export class ShownMessage {
  readonly id: string;
  readonly parent_id: string | null;
  readonly role: Message['role'];
  readonly attachments: Attachment[];
  readonly created_at: number;

  content = $state('');
  status = $state<Status>('complete');
  failure = $state.raw<Failure | null>(null);
  finish = $state<Message['finish']>(null);
  model = $state<string | null>(null);
  usage = $state.raw<TokenUsage | null>(null);
  tokens = $state.raw<Token[] | null>(null);
  connection = $state<FollowState>('open');
  /** Tokens since the first were read, and when: its speed while it runs. */
  #first = 0;
  #count = 0;
  speed = $state<number | null>(null);

  #length = 0;
  #heard = 0;
  #abort: AbortController | undefined;
  readonly #buffer = new FrameBuffer<Piece>((pieces) => this.#append(pieces));

  constructor(message: Message) {
    this.id = message.id;
    this.parent_id = message.parent_id;
    this.role = message.role;
    this.attachments = message.attachments;
    this.created_at = message.created_at;
    this.take(message);
  }

  get isRunning(): boolean {
    return this.status === 'running';
  }

  /** Whether its stream tells of it now, or has told since a time: then an answer is old. */
  isNewerThan(time: number): boolean {
    return this.#abort !== undefined || this.#heard >= time;
  }

  /** Be as the server says. */
  take(message: Message): void {
    // A stream may know more than an answer that was on its way while it ran.
    const isBehind = message.status === 'running' && this.content.startsWith(message.content);
    if (!isBehind || message.content.length > this.content.length) this.content = message.content;
    this.#length = countCodePoints(this.content);
    this.#heard = performance.now();
    this.status = message.status;
    this.failure = message.failure;
    this.finish = message.finish;
    this.model = message.model;
    this.usage = message.usage;
  }

  /** Read the answer to its end; `onEnd` is told once it is there. */
  follow(onEnd: () => void): void {
    if (this.#abort || !this.isRunning) return;
    const abort = new AbortController();
    this.#abort = abort;
    this.#first = this.#count = 0;
    this.speed = null;
    const end = () => {
      this.#buffer.flush();
      this.#abort = undefined;
      this.connection = 'open';
    };
    void follow(
      this.id,
      {
        length: () => this.#length,
        onText: (text, tokens, count) => {
          this.#length += countCodePoints(text);
          this.#measure(count);
          this.#buffer.push({ text, tokens });
        },
        onDone: (message) => {
          end();
          this.take(message);
          onEnd();
        },
        onState: (state) => (this.connection = state),
        onRefused: (error) => {
          end();
          this.status = 'failed';
          this.failure = { code: 'failed', message: error.message };
          onEnd();
        },
      },
      abort.signal,
    );
  }

  /** Stop reading; the answer goes on without us. */
  leave(): void {
    this.#abort?.abort();
    this.#abort = undefined;
    this.#buffer.flush();
  }

  #append(pieces: Piece[]): void {
    this.content += pieces.map((piece) => piece.text).join('');
    const tokens = pieces.flatMap((piece) => piece.tokens ?? []);
    if (tokens.length > 0) this.tokens = [...(this.tokens ?? []), ...tokens];
  }

  #measure(tokens: number): void {
    const now = performance.now();
    // Who begins to read later gets at once what was said meanwhile.
    if (this.#first === 0) this.#first = now;
    else this.#count += tokens;
    const time = (now - this.#first) / 1000;
    if (time > 0.5 && this.#count > 0) this.speed = this.#count / time;
  }
}
