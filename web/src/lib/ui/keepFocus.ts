/** Focus of what goes away. */

import { tick } from 'svelte';

/** Let focus go on elsewhere where the element that has it goes with a change, or can have it no more.
 *
 * To be called before the change is drawn; without it focus would fall to the page's body, and the
 * next Tab begin at the page's top.
 *
 * @param within  only what is in here is seen to.
 * @param next    gives focus to something, after the change.
 */
export function keepFocus(within: HTMLElement | undefined, next: () => void): void {
  const before = document.activeElement;
  if (!before || !within?.contains(before)) return;
  void tick().then(() => {
    const now = document.activeElement;
    const isGone = !before.isConnected || before.matches(':disabled, [inert] *');
    if (isGone && (now === null || now === document.body || now === before)) next();
  });
}
