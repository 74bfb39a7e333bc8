/** The routes of administrators. */

import { address, request } from './http';
import type { UsageQuery } from './account';
import type {
  AuditEntry,
  Balance,
  Code,
  DailyUsage,
  EngineState,
  Price,
  Role,
  Transfer,
  User,
  UserDetails,
} from './types';

const ADMIN = '/api/admin';
const user = (id: string) => `${ADMIN}/users/${encodeURIComponent(id)}`;

export const listEngines = async (signal?: AbortSignal) =>
  (await request<{ engines: EngineState[] }>('GET', `${ADMIN}/engines`, { signal })).engines;

export const listUsers = async (query: { search?: string; limit?: number; offset?: number }) =>
  (await request<{ users: User[] }>('GET', `${ADMIN}/users`, { query })).users;

export const createUser = (body: {
  email: string;
  password: string;
  role: Role;
  unlimited: boolean;
}) => request<User>('POST', `${ADMIN}/users`, { body });

export const getUser = (id: string) => request<UserDetails>('GET', user(id));

export const setStatus = (id: string, status: User['status']) =>
  request<User>('PUT', `${user(id)}/status`, { body: { status } });

export const setRole = (id: string, role: Role) =>
  request<User>('PUT', `${user(id)}/role`, { body: { role } });

export interface Movement {
  amount: number;
  book: 'granted' | 'paid';
  memo?: string;
}

export const deposit = (id: string, body: Movement) =>
  request<{ balance: Balance }>('POST', `${user(id)}/deposit`, { body });

export const withdraw = (id: string, body: Movement) =>
  request<{ balance: Balance }>('POST', `${user(id)}/withdraw`, { body });

export const listUserTransfers = (id: string, before?: number | null, limit = 20) =>
  request<{ transfers: Transfer[]; next: number | null }>('GET', `${user(id)}/transfers`, {
    query: { before, limit },
  });

export const revokeUserKey = (id: string, key: string) =>
  request<undefined>('DELETE', `${user(id)}/keys/${encodeURIComponent(key)}`);

export const listAllPrices = async () =>
  (await request<{ prices: Price[] }>('GET', `${ADMIN}/prices`)).prices;

export const setPrice = (body: Pick<Price, 'model' | 'input' | 'cached_input' | 'output'>) =>
  request<Price>('PUT', `${ADMIN}/prices`, { body });

export const listCodes = async () =>
  (await request<{ codes: Code[] }>('GET', `${ADMIN}/codes`)).codes;

export const createCode = (body: {
  amount: number;
  book: Code['book'];
  max_uses: number;
  expires_at: number | null;
}) => request<Code & { secret: string }>('POST', `${ADMIN}/codes`, { body });

export const revokeCode = (id: string) =>
  request<Code>('DELETE', `${ADMIN}/codes/${encodeURIComponent(id)}`);

export type Settings = Record<string, string | number | boolean | null>;

export const getSettings = () => request<Settings>('GET', `${ADMIN}/settings`);

export const setSetting = (name: string, value: Settings[string]) =>
  request<Settings>('PUT', `${ADMIN}/settings/${encodeURIComponent(name)}`, { body: { value } });

export const listAudit = (before?: number | null, limit = 50) =>
  request<{ entries: AuditEntry[]; next: number | null }>('GET', `${ADMIN}/audit`, {
    query: { before, limit },
  });

/** Sums with the addresses of accounts and of keys' owners, and the names of keys, by id. */
export interface AllUsage {
  usage: DailyUsage[];
  emails: Record<string, string>;
  key_names: Record<string, string>;
}

export const getAllUsage = (query: UsageQuery) =>
  request<AllUsage>('GET', `${ADMIN}/usage`, { query: { ...query } });

export const allUsageCsvAddress = (query: UsageQuery) =>
  address(`${ADMIN}/usage.csv`, { ...query });

export const verifyBooks = () =>
  request<{ sound: boolean; problems: string[] }>('POST', `${ADMIN}/verify`);
