/** Brings nodes that are shown up to date, leaving alone those that have not changed. */

/** Elements inside which something else builds its own nodes. */
export const isHost = (node: Node): node is HTMLElement =>
  node instanceof HTMLElement &&
  ['data-code', 'data-tex', 'data-image', 'data-check'].some((name) => node.hasAttribute(name));

export interface Hosts {
  /** Build what belongs in a new host. */
  build(host: HTMLElement): void;
  /** Let a host that is shown have another source; false if it must be replaced. */
  change(host: HTMLElement, next: HTMLElement): boolean;
  /** Take down what was built in a host. */
  remove(host: HTMLElement): void;
}

/** Change `shown`, which was made from `before`, into what `after` says.
 *
 * `before` and `after` are as they came from the sanitiser; `shown` has the same shape, but for the
 * insides of hosts.
 */
export function patch(shown: ParentNode & Node, before: Node, after: Node, hosts: Hosts): void {
  const live = [...shown.childNodes];
  const old = [...before.childNodes];
  const next = [...after.childNodes];
  next.forEach((node, i) => {
    const [current, known] = [live[i], old[i]];
    if (!current || !known) {
      shown.append(adopt(node, hosts));
    } else if (!known.isEqualNode(node)) {
      update(current, known, node, hosts);
    }
  });
  for (const extra of live.slice(next.length)) discard(extra, hosts);
}

function update(current: Node, known: Node, next: Node, hosts: Hosts): void {
  if (current instanceof Text && next instanceof Text) {
    current.data = next.data;
    return;
  }
  const isSameElement =
    current instanceof Element && next instanceof Element && isAlike(known as Element, next);
  if (isSameElement) {
    if (!isHost(current)) {
      patch(current, known, next, hosts);
      return;
    }
    if (hosts.change(current, next as HTMLElement)) return;
  }
  (current as ChildNode).before(adopt(next, hosts));
  discard(current as ChildNode, hosts);
}

function isAlike(a: Element, b: Element): boolean {
  const names = a.getAttributeNames();
  return (
    a.nodeName === b.nodeName &&
    names.length === b.getAttributeNames().length &&
    names.every((name) => a.getAttribute(name) === b.getAttribute(name))
  );
}

function adopt(node: Node, hosts: Hosts): Node {
  const copy = document.importNode(node, true);
  for (const host of hostsIn(copy)) hosts.build(host);
  return copy;
}

function discard(node: ChildNode, hosts: Hosts): void {
  for (const host of hostsIn(node)) hosts.remove(host);
  node.remove();
}

function hostsIn(node: Node): HTMLElement[] {
  if (isHost(node)) return [node];
  if (!(node instanceof Element)) return [];
  const selector = '[data-code], [data-tex], [data-image], [data-check]';
  return [...node.querySelectorAll<HTMLElement>(selector)];
}
