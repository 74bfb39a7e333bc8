/** What an engine did between two looks at its counters. */

import type { EngineState } from '$lib/api/types';

export interface Sample {
  at: number;
  engine: EngineState;
}

export interface Point {
  running: number;
  waiting: number;
  cacheUse: number;
  tokensPerSecond: number;
  hitRate: number;
}

export function pointOf(before: Sample | undefined, now: Sample): Point {
  const { engine } = now;
  const time = before ? (now.at - before.at) / 1000 : 0;
  const grown = (name: 'generated_tokens' | 'prompt_tokens' | 'cached_tokens') =>
    // A restart begins counting anew.
    before ? Math.max(0, engine[name] - before.engine[name]) : 0;
  const prompts = grown('prompt_tokens');
  return {
    running: engine.running,
    waiting: engine.waiting,
    cacheUse: engine.total_blocks > 0 ? 1 - engine.free_blocks / engine.total_blocks : 0,
    tokensPerSecond: time > 0 ? grown('generated_tokens') / time : 0,
    hitRate: prompts > 0 ? grown('cached_tokens') / prompts : 0,
  };
}
