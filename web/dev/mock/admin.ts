import type { Code, Price, Role, User } from '../../src/lib/api/types.ts';
import { Fault, sendFile, type Exchange, type Routes } from './exchange.ts';
import { MODELS, type World } from './world.ts';

export function adminRoutes(world: World): Routes {
  const start = Date.now();
  const user = (id: string): User => {
    const found = world.users.find((one) => one.id === id);
    if (!found) throw new Fault(404, 'No such user');
    return found;
  };
  const move =
    (sign: number) =>
    ({ body }: Exchange<{ amount: number; book: 'granted' | 'paid' }>) => {
      world.balance = {
        ...world.balance,
        [body.book]: world.balance[body.book] + sign * body.amount,
      };
      return { moved: true, balance: world.balance };
    };

  return {
    'GET /api/admin/engines': () => {
      const seconds = (Date.now() - start) / 1000;
      const engines = MODELS.slice(0, 2).map(({ name, description }, i) => {
        const load = 0.5 + 0.4 * Math.sin(seconds / 7 + i * 2);
        return {
          model: name,
          description,
          is_healthy: true,
          running: Math.round(load * 24),
          waiting: Math.max(0, Math.round(load * 14 - 8)),
          total_blocks: 4096,
          free_blocks: Math.round(4096 * (1 - load * 0.8)),
          generated_tokens: Math.round(seconds * 640 + 260 * Math.sin(seconds / 3)),
          prompt_tokens: Math.round(seconds * 2100),
          cached_tokens: Math.round(seconds * 1240),
          steps: Math.round(seconds * 31),
          step_seconds: seconds * 0.9,
        };
      });
      return { engines };
    },
    'GET /api/admin/users': ({ query }) => ({
      users: world.users
        .filter(({ email }) => email.includes(query.get('search') ?? ''))
        .slice(Number(query.get('offset') ?? 0)),
    }),
    'POST /api/admin/users': ({ body }: Exchange<{ email: string; role: Role }>) => {
      const made: User = {
        id: world.id('user'),
        account_id: world.id('acct'),
        email: body.email,
        role: body.role,
        status: 'active',
        created_at: Date.now(),
      };
      world.users.push(made);
      return made;
    },
    'GET /api/admin/users/:id': ({ params }) => ({
      ...user(params['id']!),
      balance: world.balance,
      keys: world.keys,
    }),
    'PUT /api/admin/users/:id/status': ({ params, body }) =>
      Object.assign(user(params['id']!), body),
    'PUT /api/admin/users/:id/role': ({ params, body }) => Object.assign(user(params['id']!), body),
    'POST /api/admin/users/:id/deposit': move(1),
    'POST /api/admin/users/:id/withdraw': move(-1),
    'GET /api/admin/users/:id/transfers': () => ({
      transfers: world.transfers.slice(0, 10).map((row) => ({ ...row, actor: 'user_0001' })),
      next: null,
    }),
    'DELETE /api/admin/users/:id/keys/:key': ({ params }) =>
      Object.assign(
        world.keys.find(({ id }) => id === params['key'])!,
        { revoked_at: Date.now() },
      ),
    'GET /api/admin/prices': () => ({ prices: world.prices }),
    'PUT /api/admin/prices': ({
      body,
    }: Exchange<Pick<Price, 'model' | 'input' | 'cached_input' | 'output'>>) => {
      const made = { id: world.prices.length + 1, version: 2, ...body };
      world.prices.push(made);
      return made;
    },
    'GET /api/admin/codes': () => ({ codes: world.codes }),
    'POST /api/admin/codes': ({
      body,
    }: Exchange<Omit<Code, 'id' | 'prefix' | 'uses' | 'revoked_at'>>) => {
      const made: Code = {
        id: world.id('code'),
        prefix: 'GIFT-NE',
        uses: 0,
        revoked_at: null,
        ...body,
      };
      world.codes.unshift(made);
      return { ...made, secret: 'GIFT-NEW-CODE-MOCK' };
    },
    'DELETE /api/admin/codes/:id': ({ params }) =>
      Object.assign(
        world.codes.find(({ id }) => id === params['id'])!,
        { revoked_at: Date.now() },
      ),
    'GET /api/admin/settings': () => world.settings,
    'PUT /api/admin/settings/:name': ({ params, body }: Exchange<{ value: string }>) =>
      (world.settings = { ...world.settings, [params['name']!]: body.value }),
    'GET /api/admin/audit': () => ({ entries: world.audit, next: null }),
    'GET /api/admin/usage': () => ({ usage: world.usage, emails: {}, key_names: {} }),
    'GET /api/admin/usage.csv': ({ response }) => sendFile(response, 'usage.csv', 'text/csv', ''),
    'POST /api/admin/verify': () => ({ sound: true, problems: [] }),
  };
}
