/** The models that are served, and one's presets. */

import * as api from '$lib/api/chat';
import type { Model, Preset } from '$lib/api/types';
import { prefs } from '$lib/state/prefs.svelte';

class Catalogue {
  models = $state.raw<Model[]>([]);
  presets = $state.raw<Preset[]>([]);

  async load(): Promise<void> {
    [this.models, this.presets] = await Promise.all([api.listModels(), api.listPresets()]);
  }

  async loadPresets(): Promise<void> {
    this.presets = await api.listPresets();
  }

  /** The model of that name, else the one that was chosen last, else the first. */
  find(name: string | undefined): Model | undefined {
    const { models } = this;
    return (
      models.find((model) => model.name === name) ??
      models.find((model) => model.name === prefs.model) ??
      models[0]
    );
  }
}

export const catalogue = new Catalogue();
