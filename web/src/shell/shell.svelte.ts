/** Whether the sidebar stands beside the page, lies over it, or is away. */

import { prefs } from '$lib/state/prefs.svelte';

/** The id of the button that shows or hides it: in it, or where it is away in the page's header. */
export const TOGGLE = 'toggle-sidebar';

class ShellState {
  isNarrow = $state(false);
  isDrawerOpen = $state(false);

  get isSidebarShown(): boolean {
    return this.isNarrow ? this.isDrawerOpen : prefs.isSidebarOpen;
  }

  toggle(): void {
    if (this.isNarrow) this.isDrawerOpen = !this.isDrawerOpen;
    else prefs.setSidebar(!prefs.isSidebarOpen);
  }

  open(): void {
    if (!this.isSidebarShown) this.toggle();
  }
}

export const shell = new ShellState();
