/** The routes of one's own account. */

import { address, request } from './http';
import type {
  ApiKey,
  Balance,
  DailyUsage,
  KeyLimits,
  Me,
  Price,
  RequestUsage,
  Transfer,
  User,
} from './types';

const ACCOUNT = '/api/account';

export const signUp = (email: string, password: string) =>
  request<User>('POST', `${ACCOUNT}/sign-up`, { body: { email, password } });

export const logIn = (email: string, password: string) =>
  request<User>('POST', `${ACCOUNT}/log-in`, { body: { email, password } });

export const logOut = () => request<undefined>('POST', `${ACCOUNT}/log-out`);

export const logOutEverywhere = () => request<undefined>('POST', `${ACCOUNT}/log-out-everywhere`);

export const getMe = () => request<Me>('GET', `${ACCOUNT}/me`);

export const changePassword = (old_password: string, new_password: string) =>
  request<undefined>('PUT', `${ACCOUNT}/password`, { body: { old_password, new_password } });

export const listKeys = async () =>
  (await request<{ keys: ApiKey[] }>('GET', `${ACCOUNT}/keys`)).keys;

export const createKey = (body: { name: string } & Partial<KeyLimits>) =>
  request<ApiKey & { secret: string }>('POST', `${ACCOUNT}/keys`, { body });

export const changeKey = (id: string, body: { name?: string } & Partial<KeyLimits>) =>
  request<ApiKey>('PATCH', `${ACCOUNT}/keys/${encodeURIComponent(id)}`, { body });

export const revokeKey = (id: string) =>
  request<ApiKey>('DELETE', `${ACCOUNT}/keys/${encodeURIComponent(id)}`);

export const getBalance = () =>
  request<Balance & { currency: string }>('GET', `${ACCOUNT}/balance`);

export const redeem = (code: string) =>
  request<Balance & { amount: number }>('POST', `${ACCOUNT}/redeem`, { body: { code } });

export const listTransfers = (before?: number | null, limit = 50) =>
  request<{ transfers: Transfer[]; next: number | null }>('GET', `${ACCOUNT}/transfers`, {
    query: { before, limit },
  });

export const listPrices = async () =>
  (await request<{ prices: Price[] }>('GET', `${ACCOUNT}/prices`)).prices;

export interface UsageQuery {
  first?: string;
  last?: string;
  key?: string;
  model?: string;
}

export const getUsage = async (query: UsageQuery) =>
  (await request<{ usage: DailyUsage[] }>('GET', `${ACCOUNT}/usage`, { query: { ...query } }))
    .usage;

export const usageCsvAddress = (query: UsageQuery) => address(`${ACCOUNT}/usage.csv`, { ...query });

export const listRequests = async (limit: number, offset: number) =>
  (
    await request<{ requests: RequestUsage[] }>('GET', `${ACCOUNT}/requests`, {
      query: { limit, offset },
    })
  ).requests;

export const requestsCsvAddress = `${ACCOUNT}/requests.csv`;
