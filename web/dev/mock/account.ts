import type { KeyLimits } from '../../src/lib/api/types.ts';
import { Fault, sendFile, type Exchange, type Routes } from './exchange.ts';
import type { World } from './world.ts';

interface Credentials {
  email: string;
  password: string;
}

export function accountRoutes(world: World): Routes {
  const enter = ({ body }: Exchange<Credentials>) => {
    if (body.password.length < 8) throw new Fault(401, 'Wrong e-mail address or password');
    const user = world.users.find(({ email }) => email === body.email) ?? world.users[1]!;
    world.me = { ...user, email: body.email, guest: false };
    return user;
  };
  const days = (query: URLSearchParams) =>
    world.usage.filter(
      (row) =>
        row.day >= (query.get('first') ?? '') &&
        row.day <= (query.get('last') ?? '9') &&
        (!query.get('key') || row.key_id === query.get('key')) &&
        (!query.get('model') || row.model === query.get('model')),
    );

  return {
    'POST /api/account/sign-up': enter,
    'POST /api/account/log-in': enter,
    'POST /api/account/log-out': () => {
      world.me = null;
    },
    'POST /api/account/log-out-everywhere': () => {
      world.me = null;
    },
    'GET /api/account/me': () => {
      if (!world.me) throw new Fault(401, 'Not signed in');
      return { ...world.me, currency: 'USD' };
    },
    'PUT /api/account/password': () => undefined,
    'GET /api/account/keys': () => ({ keys: world.keys }),
    'POST /api/account/keys': ({ body }: Exchange<{ name: string } & Partial<KeyLimits>>) => {
      const key = {
        id: world.id('key'),
        prefix: 'sk-Nw5e',
        created_at: Date.now(),
        revoked_at: null,
        last_used_at: null,
        spent: 0,
        held: 0,
        models: null,
        budget: null,
        budget_period: 'total',
        requests_per_minute: null,
        tokens_per_minute: null,
        max_concurrent: null,
        expires_at: null,
        ...body,
      };
      world.keys.unshift(key);
      return { ...key, secret: 'sk-Nw5eQ0mocked-secret-of-a-key-that-opens-nothing' };
    },
    'PATCH /api/account/keys/:id': ({ params, body }) =>
      Object.assign(
        world.keys.find(({ id }) => id === params['id'])!,
        body,
      ),
    'DELETE /api/account/keys/:id': ({ params }) =>
      Object.assign(
        world.keys.find(({ id }) => id === params['id'])!,
        { revoked_at: Date.now() },
      ),
    'GET /api/account/balance': () => ({ ...world.balance, currency: 'USD' }),
    'POST /api/account/redeem': ({ body }: Exchange<{ code: string }>) => {
      if (!body.code.startsWith('GIFT')) throw new Fault(404, 'No such code');
      world.balance = {
        ...world.balance,
        granted: world.balance.granted + 2_000_000,
        total: world.balance.total + 2_000_000,
        available: world.balance.available + 2_000_000,
      };
      return { amount: 2_000_000, ...world.balance };
    },
    'GET /api/account/transfers': () => ({ transfers: world.transfers, next: null }),
    'GET /api/account/prices': () => ({ prices: world.prices }),
    'GET /api/account/usage': ({ query }) => ({ usage: days(query) }),
    'GET /api/account/usage.csv': ({ query, response }) => {
      const rows = days(query).map((row) => Object.values(row).join(','));
      sendFile(response, 'usage.csv', 'text/csv', rows.join('\n'));
    },
    'GET /api/account/requests': ({ query }) => {
      const offset = Number(query.get('offset') ?? 0);
      const requests = Array.from({ length: offset < 100 ? 25 : 0 }, (_, i) => ({
        id: `req_${offset + i}`,
        account_id: '',
        key_id: world.keys[i % 2]!.id,
        model: world.prices[i % 3]!.model,
        prompt_tokens: 900 + i * 31,
        cached_tokens: 640,
        completion_tokens: 120 + i * 7,
        cost: 380 + i * 9,
        charge: 380 + i * 9,
        refunded: 0,
        finish: i % 7 === 3 ? 'length' : 'stop',
        created_at: Date.now() - (offset + i) * 600_000,
        finished_at: Date.now() - (offset + i) * 600_000 + 3200,
      }));
      return { requests };
    },
    'GET /api/account/requests.csv': ({ response }) =>
      sendFile(response, 'requests.csv', 'text/csv', 'id'),
  };
}
