/** What keys and menus can ask for, wherever they are; the page that is shown says how. */

import type { Action } from '$lib/shortcuts';

type Handlers = Partial<Record<Action, () => void>>;

class Commands {
  isHelpOpen = $state(false);
  /** The document's title. */
  title = $state('');
  #handlers: Handlers[] = [{ help: () => (this.isHelpOpen = true) }];

  /** Offer actions until the returned function is called; later ones go before earlier ones. */
  offer(handlers: Handlers): () => void {
    this.#handlers.push(handlers);
    return () => {
      this.#handlers = this.#handlers.filter((one) => one !== handlers);
    };
  }

  /** Whether somebody took it. */
  run(action: Action): boolean {
    const handler = this.#handlers.findLast((one) => one[action])?.[action];
    handler?.();
    return handler !== undefined;
  }
}

export const commands = new Commands();
