/** Axes that end at round numbers. */

/** The least of 1, 2, 2.5 or 5 times a power of ten that is not less; 1 for nothing. */
export function niceCeiling(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 2.5, 5, 10].find((one) => one * power >= value * (1 - 1e-9));
  return (step ?? 10) * power;
}

/** Round numbers from zero to the first that is not less than the value, about as many as wanted. */
export function ticks(value: number, steps = 4): number[] {
  const step = niceCeiling(value / steps);
  const count = Math.max(1, Math.ceil(value / step - 1e-9));
  return Array.from({ length: count + 1 }, (_, i) => step * i);
}

/** How many labels of an axis find room in so many pixels; the last one ends where the axis does. */
export function roomFor(labels: readonly string[], width: number): number {
  const widths = labels.map((label) =>
    [...label].reduce((sum, letter) => sum + (letter < '\u2e80' ? 6 : 11), 0),
  );
  return Math.floor(width / (1.5 * Math.max(0, ...widths) + 6));
}

/** Which of the labels are shown where only so many have room: evenly, and always the last. */
export function everyNth(n: number, room: number): (i: number) => boolean {
  const step = Math.max(1, Math.ceil(n / Math.max(1, room)));
  return (i) => (n - 1 - i) % step === 0;
}
