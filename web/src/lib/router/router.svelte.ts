/** The page that is shown, kept in step with the address bar. */

import { isOurs } from './match';

class Router {
  path = $state(location.pathname);
  query = $state.raw(new URLSearchParams(location.search));

  start(): () => void {
    const onPop = () => this.#read();
    const onClick = (event: MouseEvent) => {
      const link = (event.target as Element | null)?.closest?.('a');
      if (event.defaultPrevented || !link || !link.href) return;
      if (!isOurs(event, link, location.origin)) return;
      event.preventDefault();
      this.go(link.pathname + link.search);
    };
    window.addEventListener('popstate', onPop);
    document.addEventListener('click', onClick);
    return () => {
      window.removeEventListener('popstate', onPop);
      document.removeEventListener('click', onClick);
    };
  }

  go(address: string, { replaces = false } = {}): void {
    const isSame = address === location.pathname + location.search;
    if (replaces || isSame) history.replaceState(null, '', address);
    else history.pushState(null, '', address);
    this.#read();
  }

  /** The address of a page that is given what this one was asked for. */
  withQuery(path: string): string {
    const query = this.query.toString();
    return query ? `${path}?${query}` : path;
  }

  #read(): void {
    this.path = location.pathname;
    this.query = new URLSearchParams(location.search);
  }
}

export const router = new Router();
