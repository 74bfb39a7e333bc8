/** Components inside sanitised nodes: code, formulas, and what stands for an image. */

import { mount, unmount } from 'svelte';
import BlockedImage from './BlockedImage.svelte';
import CodeBlock from './CodeBlock.svelte';
import Formula from './Formula.svelte';
import type { Hosts } from './morph';

interface Island {
  component: Record<string, unknown>;
  /** Reactive: a change is drawn. */
  props: { text: string; tex: string };
}

export class Islands implements Hosts {
  readonly #islands = new Map<HTMLElement, Island>();

  build(host: HTMLElement): void {
    const text = host.textContent ?? '';
    const { code, tex, image } = host.dataset;
    // A checkbox is drawn by styles alone.
    if (code === undefined && tex === undefined && image === undefined) return;
    host.replaceChildren();
    const props = $state({ text, tex: text });
    const component =
      code !== undefined
        ? mount(CodeBlock, { target: host, props: mixed(props, { language: code }) })
        : tex !== undefined
          ? mount(Formula, { target: host, props: mixed(props, { isDisplay: tex === 'display' }) })
          : mount(BlockedImage, { target: host, props: { text, address: image ?? '' } });
    this.#islands.set(host, { component, props });
  }

  change(host: HTMLElement, next: HTMLElement): boolean {
    const island = this.#islands.get(host);
    if (!island) return false;
    const text = next.textContent ?? '';
    island.props.text = text;
    island.props.tex = text;
    return true;
  }

  remove(host: HTMLElement): void {
    const island = this.#islands.get(host);
    if (!island) return;
    this.#islands.delete(host);
    void unmount(island.component);
  }

  removeAll(): void {
    for (const host of [...this.#islands.keys()]) this.remove(host);
  }
}

/** The reactive properties with fixed ones beside them. */
function mixed<A extends object, B extends object>(reactive: A, fixed: B): A & B {
  return Object.defineProperties(
    { ...fixed },
    Object.fromEntries(
      Object.keys(reactive).map((name) => [
        name,
        { enumerable: true, get: () => reactive[name as keyof A] },
      ]),
    ),
  ) as A & B;
}
