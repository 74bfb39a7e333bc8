/** Lines of the audit log in words. */

import type { AuditEntry } from '$lib/api/types';
import { t, tn, word } from '$lib/i18n/i18n.svelte';
import { SETTINGS, writeSetting } from './settings';

type Write = (micro: number) => string;

/** What an action was done to, where it has a name that people know. */
export function subjectOf({ action, subject }: Pick<AuditEntry, 'action' | 'subject'>): string {
  return action === 'setting.change' ? word('setting', subject) : '';
}

/** What there is to know of an action, without what only programs want to know.
 *
 * @param money  writes an amount.
 */
export function factsOf(
  { action, subject, detail }: Pick<AuditEntry, 'action' | 'subject' | 'detail'>,
  money: Write,
): string {
  const facts = (Object(detail) === detail ? detail : {}) as Record<string, unknown>;
  const found: string[] = [];
  const add = (name: string, write: (value: unknown) => string) => {
    if (Object.hasOwn(facts, name)) found.push(write(facts[name]));
  };
  add('amount', (value) => money(Number(value)));
  add('book', (value) => word('balance', String(value)));
  add('max_uses', (value) => tn('audit.uses', Number(value)));
  add('role', (value) => word('role', String(value)));
  add('status', (value) => word('users', String(value)));
  add('unlimited', (value) => (value ? t('users.unlimited') : ''));
  for (const [name, key] of [
    ['input', 'price.input'],
    ['cached_input', 'price.cached'],
    ['output', 'price.output'],
  ] as const) {
    add(name, (value) => `${t(key)} ${money(Number(value))}`);
  }
  if (action === 'setting.change') {
    const unit = SETTINGS[subject]?.unit ?? 'plain';
    add('value', (value) => {
      if (value === null) return t('keys.noLimit');
      if (typeof value === 'boolean') return t(value ? 'audit.yes' : 'audit.no');
      return unit === 'money' ? money(Number(value)) : writeSetting(value as string, unit);
    });
  }
  return found.filter(Boolean).join(' · ');
}
