/** What the server's chat and platform routes send. Times are milliseconds since 1970. */

export interface Params {
  model?: string;
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  max_tokens?: number;
  repetition_penalty?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  seed?: number;
  stop?: string[];
  logprobs?: boolean;
}

export interface Attachment {
  name: string;
  text: string;
}

export interface TokenUsage {
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  /** From the first token to the last. */
  seconds: number;
}

export type FailureCode =
  | 'context_length'
  | 'no_money'
  | 'overloaded'
  | 'rate_limited'
  | 'engine_lost'
  | 'interrupted'
  | 'failed';

export interface Failure {
  code: FailureCode;
  message: string;
}

export type Status = 'complete' | 'running' | 'stopped' | 'failed';

export interface Message {
  id: string;
  parent_id: string | null;
  role: 'user' | 'assistant';
  content: string;
  attachments: Attachment[];
  status: Status;
  failure: Failure | null;
  finish: 'stop' | 'length' | null;
  model: string | null;
  usage: TokenUsage | null;
  created_at: number;
}

export interface ConversationSummary {
  id: string;
  title: string;
  tags: string[];
  created_at: number;
  updated_at: number;
  is_pinned: boolean;
}

export interface Conversation extends ConversationSummary {
  system: string;
  params: Params;
  leaf_id: string | null;
  messages: Message[];
}

export interface Preset {
  id: string;
  name: string;
  system: string;
  params: Params;
}

export interface Model {
  name: string;
  max_context: number;
  description: string;
}

export interface Token {
  text: string;
  logprob: number;
  top: [string, number][];
}

export interface Delta {
  /** The character of the content at which the text begins. */
  at: number;
  text: string;
  tokens?: Token[];
  /** How many tokens it took; not there where another process of the server computes. */
  count?: number;
}

export interface Site {
  guest: boolean;
  sign_up: boolean;
  user: { email: string; role: Role } | null;
  version: string;
}

export type Role = 'user' | 'admin';

export interface User {
  id: string;
  account_id: string;
  email: string;
  role: Role;
  status: 'active' | 'suspended';
  created_at: number;
}

export interface Me extends User {
  guest: boolean;
  currency: string;
}

/** Amounts are micro-units: 10^-6 of the currency. */
export interface Balance {
  granted: number;
  paid: number;
  held: number;
  spent: number;
  unlimited: boolean;
  status: string;
  total: number;
  available: number;
}

export interface Transfer {
  id: number;
  kind: string;
  cause: string;
  memo: string;
  created_at: number;
  moves: Record<string, number>;
  /** Of the request that a charge or a refund is for. */
  model: string | null;
  actor?: string;
}

export interface Price {
  id: number;
  model: string;
  version: number;
  input: number;
  cached_input: number;
  output: number;
}

export interface KeyLimits {
  models: string[] | null;
  budget: number | null;
  budget_period: string;
  requests_per_minute: number | null;
  tokens_per_minute: number | null;
  max_concurrent: number | null;
  expires_at: number | null;
}

export interface ApiKey extends KeyLimits {
  id: string;
  name: string;
  prefix: string;
  created_at: number;
  revoked_at: number | null;
  last_used_at: number | null;
  spent: number;
  held: number;
}

export interface DailyUsage {
  day: string;
  account_id: string;
  key_id: string;
  model: string;
  requests: number;
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  charge: number;
}

export interface RequestUsage {
  id: string;
  account_id: string;
  key_id: string;
  model: string;
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  cost: number;
  charge: number;
  refunded: number;
  finish: string;
  created_at: number;
  finished_at: number;
}

export interface Code {
  id: string;
  prefix: string;
  book: 'granted' | 'paid';
  amount: number;
  max_uses: number;
  uses: number;
  expires_at: number | null;
  revoked_at: number | null;
}

export interface UserDetails extends User {
  balance: Balance;
  keys: ApiKey[];
}

/** Ids come with the address of whom they belong to, if there is such a person. */
export interface AuditEntry {
  id: number;
  at: number;
  actor: string;
  actor_email: string | null;
  action: string;
  subject: string;
  subject_email: string | null;
  detail: unknown;
}

export interface EngineState {
  model: string;
  description: string;
  is_healthy: boolean;
  running: number;
  waiting: number;
  total_blocks: number;
  free_blocks: number;
  generated_tokens: number;
  prompt_tokens: number;
  cached_tokens: number;
  steps: number;
  step_seconds: number;
}
