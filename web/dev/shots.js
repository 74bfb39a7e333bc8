/** Pictures of every page, in light, dark and on a phone: `npm run shots -- FOLDER [NAME...]`. */

import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';
import { preview } from 'vite';

/** @type {{name: string, path: string, act?: (page: import('playwright-core').Page) => Promise<unknown>}[]} */
const SHOTS = [
  { name: 'new', path: '/' },
  { name: 'chat', path: '/c/chat_merge' },
  {
    name: 'chat-top',
    path: '/c/chat_merge',
    act: (page) => page.locator('.scroller').evaluate((node) => node.scrollTo(0, 0)),
  },
  { name: 'math', path: '/c/chat_math' },
  { name: 'errors', path: '/c/chat_errors' },
  { name: 'hostile', path: '/c/chat_hostile' },
  { name: 'long', path: '/c/chat_long' },
  {
    name: 'tokens',
    path: '/c/chat_merge',
    act: (page) => page.getByLabel('Colour tokens by probability').last().click(),
  },
  {
    name: 'settings',
    path: '/c/chat_merge',
    act: (page) => page.getByRole('button', { name: 'Chat settings' }).click(),
  },
  {
    name: 'menu',
    path: '/c/chat_merge',
    act: (page) => page.getByLabel('Options of Merging two sorted lists').last().click(),
  },
  {
    name: 'help',
    path: '/',
    act: async (page) => {
      await page.evaluate(() => document.activeElement?.blur());
      await page.keyboard.press('?');
    },
  },
  {
    name: 'drawer',
    path: '/c/chat_math',
    act: async (page) => {
      const opener = page.getByRole('button', { name: 'Open the sidebar' });
      if (await opener.isVisible()) await opener.click();
    },
  },
  {
    name: 'fill',
    path: '/fill',
    act: (page) =>
      page
        .getByRole('button', { name: 'Fill in' })
        .click()
        .then(() => page.getByText('filled in').waitFor()),
  },
  { name: 'profile', path: '/account' },
  { name: 'keys', path: '/account/keys' },
  {
    name: 'key',
    path: '/account/keys',
    act: (page) => page.getByRole('button', { name: 'Create a key' }).click(),
  },
  { name: 'balance', path: '/account/balance' },
  { name: 'usage', path: '/account/usage' },
  { name: 'engines', path: '/admin', act: (page) => page.waitForTimeout(9000) },
  { name: 'users', path: '/admin/users' },
  { name: 'user', path: '/admin/users', act: (page) => page.getByText('grace@').click() },
  { name: 'prices', path: '/admin/prices' },
  { name: 'codes', path: '/admin/codes' },
  { name: 'site', path: '/admin/settings' },
  { name: 'audit', path: '/admin/audit' },
  { name: 'log-in', path: '/log-in' },
];

const LOOKS = [
  { name: 'light', width: 1280, height: 820, colorScheme: 'light' },
  { name: 'dark', width: 1280, height: 820, colorScheme: 'dark' },
  { name: 'mobile', width: 360, height: 740, colorScheme: 'light' },
];

async function shoot(browser, origin, folder, names) {
  for (const look of LOOKS) {
    const context = await browser.newContext({
      viewport: { width: look.width, height: look.height },
      colorScheme: look.colorScheme,
      locale: 'en-GB',
      deviceScaleFactor: look.name === 'mobile' ? 2 : 1,
    });
    const page = await context.newPage();
    page.on('console', (message) => {
      if (message.type() === 'error') console.log(look.name, message.text());
    });
    page.on('pageerror', (error) => console.log(look.name, error));
    for (const { name, path, act } of SHOTS) {
      const isWanted =
        names.length === 0 || names.includes(name) || names.includes(`${name}-${look.name}`);
      if (!isWanted) continue;
      await page.goto(origin + path, { waitUntil: 'networkidle' });
      await page.waitForTimeout(300);
      await act?.(page).catch((error) => console.log(name, look.name, String(error).slice(0, 300)));
      await page.waitForTimeout(300);
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (overflow > 0) console.log(`${name} ${look.name}: ${overflow}px too wide`);
      for (const problem of await judge(page)) console.log(`${name} ${look.name}: ${problem}`);
      await page.screenshot({ path: `${folder}/${name}-${look.name}.png` });
    }
    await context.close();
  }
}

const axe = createRequire(import.meta.url).resolve('axe-core');

/** What of WCAG 2.2 AA a page breaks. */
async function judge(page) {
  // By the debugger's way, which the page's policy does not stop.
  const source = await readFile(axe, 'utf8');
  await page.evaluate(source);
  const { violations } = await page.evaluate(() =>
    globalThis.axe.run({
      runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
    }),
  );
  return violations.map(
    ({ id, nodes }) =>
      `${id}: ${nodes
        .map((node) => node.target.join(' '))
        .slice(0, 3)
        .join(' | ')}`,
  );
}

const [folder = 'shots', ...names] = process.argv.slice(2);
const server = await preview({ preview: { port: 4180, strictPort: true } });
const browser = await chromium.launch({
  executablePath: process.env['CHROMIUM'] ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'],
});
try {
  await shoot(browser, 'http://localhost:4180', folder, names);
} finally {
  await browser.close();
  await server.close();
}
process.exit(0);
