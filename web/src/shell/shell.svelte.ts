/** Whether the sidebar stands beside the page, lies over it, or is away. */

import { prefs } from '$lib/state/prefs.svelte';

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
