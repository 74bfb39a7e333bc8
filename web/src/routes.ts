/** Every page: its address, its name, who may see it, and where its code comes from. */

import type { Component } from 'svelte';
import type { Key } from '$lib/i18n/i18n.svelte';
import { match, type RouteParams } from '$lib/router/match';

/** A page's component; those that need nothing of the address take no notice of `params`. */
export type View = Component<{ params: RouteParams }>;

export type Section = 'chat' | 'fill' | 'account' | 'admin' | 'door';

export interface Page {
  pattern: string;
  section: Section;
  title: Key;
  /** Null is the chat, which is in the first load. */
  load: (() => Promise<{ default: unknown }>) | null;
}

export const PAGES: Page[] = [
  { pattern: '/', section: 'chat', title: 'nav.chat', load: null },
  { pattern: '/c/:id', section: 'chat', title: 'nav.chat', load: null },
  {
    pattern: '/fill',
    section: 'fill',
    title: 'nav.fill',
    load: () => import('./views/fill/FillView.svelte'),
  },
  {
    pattern: '/log-in',
    section: 'door',
    title: 'door.logIn',
    load: () => import('./views/account/LogIn.svelte'),
  },
  {
    pattern: '/sign-up',
    section: 'door',
    title: 'door.signUp',
    load: () => import('./views/account/SignUp.svelte'),
  },
  {
    pattern: '/account',
    section: 'account',
    title: 'nav.profile',
    load: () => import('./views/account/Profile.svelte'),
  },
  {
    pattern: '/account/keys',
    section: 'account',
    title: 'nav.keys',
    load: () => import('./views/account/Keys.svelte'),
  },
  {
    pattern: '/account/balance',
    section: 'account',
    title: 'nav.balance',
    load: () => import('./views/account/Balance.svelte'),
  },
  {
    pattern: '/account/usage',
    section: 'account',
    title: 'nav.usage',
    load: () => import('./views/account/Usage.svelte'),
  },
  {
    pattern: '/docs',
    section: 'account',
    title: 'docs.title',
    load: () => import('./views/docs/Docs.svelte'),
  },
  {
    pattern: '/admin',
    section: 'admin',
    title: 'nav.engines',
    load: () => import('./views/admin/Engines.svelte'),
  },
  {
    pattern: '/admin/users',
    section: 'admin',
    title: 'nav.users',
    load: () => import('./views/admin/Users.svelte'),
  },
  {
    pattern: '/admin/users/:id',
    section: 'admin',
    title: 'nav.users',
    load: () => import('./views/admin/UserPage.svelte'),
  },
  {
    pattern: '/admin/usage',
    section: 'admin',
    title: 'nav.allUsage',
    load: () => import('./views/admin/AllUsage.svelte'),
  },
  {
    pattern: '/admin/prices',
    section: 'admin',
    title: 'nav.prices',
    load: () => import('./views/admin/Prices.svelte'),
  },
  {
    pattern: '/admin/codes',
    section: 'admin',
    title: 'nav.codes',
    load: () => import('./views/admin/Codes.svelte'),
  },
  {
    pattern: '/admin/settings',
    section: 'admin',
    title: 'nav.settings',
    load: () => import('./views/admin/SiteSettings.svelte'),
  },
  {
    pattern: '/admin/audit',
    section: 'admin',
    title: 'nav.audit',
    load: () => import('./views/admin/Audit.svelte'),
  },
];

export interface Route {
  page: Page;
  params: RouteParams;
}

export function findPage(path: string): Route | null {
  for (const page of PAGES) {
    const params = match(page.pattern, path);
    if (params) return { page, params };
  }
  return null;
}
