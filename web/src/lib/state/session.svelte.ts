/** Who uses the site, and what the site lets them do. */

import { logOut, getMe } from '$lib/api/account';
import { getSite } from '$lib/api/chat';
import { onSignedOut } from '$lib/api/http';
import type { Me, Site } from '$lib/api/types';

class Session {
  site = $state.raw<Site | null>(null);
  me = $state.raw<Me | null>(null);

  constructor() {
    onSignedOut(() => (this.me = null));
  }

  get isSignedIn(): boolean {
    return this.me !== null;
  }

  get isGuest(): boolean {
    return this.me?.guest ?? false;
  }

  get isAdmin(): boolean {
    return this.me?.role === 'admin';
  }

  get currency(): string {
    return this.me?.currency ?? 'USD';
  }

  async load(): Promise<void> {
    this.site = await getSite();
    this.me = this.site.user || this.site.guest ? await getMe().catch(() => null) : null;
  }

  async logOut(): Promise<void> {
    await logOut();
    // Nothing of the user who left may stay in memory. Who may not be a guest comes to the door.
    location.assign('/');
  }
}

export const session = new Session();
