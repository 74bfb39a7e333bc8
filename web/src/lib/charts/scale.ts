/** Axes that end at round numbers. */

/** The least of 1, 2, 2.5 or 5 times a power of ten that is not less; 1 for nothing. */
export function niceCeiling(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 2.5, 5, 10].find((one) => one * power >= value * (1 - 1e-9));
  return (step ?? 10) * power;
}

/** From zero to the top in equal steps. */
export function ticks(top: number, steps = 4): number[] {
  return Array.from({ length: steps + 1 }, (_, i) => (top * i) / steps);
}

/** Which of the labels are shown where only so many have room: evenly, and always the last. */
export function everyNth(n: number, room: number): (i: number) => boolean {
  const step = Math.max(1, Math.ceil(n / Math.max(1, room)));
  return (i) => (n - 1 - i) % step === 0;
}
