/** Which page an address means. */

export type RouteParams = Record<string, string>;

/** The parts of a path that a pattern such as `/c/:id` names; null if it does not fit. */
export function match(pattern: string, path: string): RouteParams | null {
  const wanted = split(pattern);
  const given = split(path);
  if (wanted.length !== given.length) return null;
  const params: RouteParams = {};
  for (const [i, part] of wanted.entries()) {
    const value = given[i]!;
    if (!part.startsWith(':')) {
      if (part !== value) return null;
      continue;
    }
    try {
      params[part.slice(1)] = decodeURIComponent(value);
    } catch {
      return null;
    }
  }
  return params;
}

function split(path: string): string[] {
  return path.split('/').filter((part) => part !== '');
}

/** Whether a click on a link is for the router: a plain one, to a page of this site. */
export function isOurs(event: MouseEvent, link: HTMLAnchorElement, origin: string): boolean {
  const isPlain =
    event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
  const isHere = link.origin === origin && !link.pathname.startsWith('/api/');
  return isPlain && isHere && !link.target && !link.hasAttribute('download');
}
