/** The one place where HTML becomes nodes. */

import DOMPurify from 'dompurify';

const purify = DOMPurify(window);

const TAGS = [
  ...['p', 'br', 'hr', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'blockquote', 'pre', 'div', 'span'],
  ...['ul', 'ol', 'li', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'a', 'code', 'em', 'strong'],
  ...['del', 'sub', 'sup', 'kbd', 'mark', 'b', 'i', 'u', 's', 'details', 'summary'],
];
const ATTRIBUTES = [
  'href',
  'title',
  'align',
  'start',
  'data-tex',
  'data-code',
  'data-check',
  'data-image',
];

/** Where a link may lead. */
export function isSafeLink(address: string): boolean {
  try {
    // A relative address would lead into this site, whose pages a model does not know.
    return ['http:', 'https:', 'mailto:'].includes(new URL(address).protocol);
  } catch {
    return false;
  }
}

/** Nodes of the allowed kinds, with nothing that runs, fetches or leads anywhere but to the web. */
export function sanitize(html: string): DocumentFragment {
  // Where nothing is left, there is no fragment either, whatever its type says.
  const sanitized: DocumentFragment | null = purify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  const fragment = sanitized ?? new DocumentFragment();
  for (const link of fragment.querySelectorAll('a')) {
    const address = link.getAttribute('href') ?? '';
    if (!isSafeLink(address)) {
      link.replaceWith(...link.childNodes);
      continue;
    }
    link.target = '_blank';
    link.rel = 'noopener noreferrer nofollow';
  }
  for (const table of fragment.querySelectorAll('table')) {
    // A wide table scrolls in a frame of its own, by keys too.
    const frame = document.createElement('div');
    frame.className = 'wide';
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}
