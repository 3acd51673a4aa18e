/** Numbers as people write them: 2.2 × 10⁻¹⁶, not 2.2e-16. */

import { format } from "d3-format";

import { numberOf, type Readout } from "./contract";

const DIGITS: Record<string, string> = {
  "-": "⁻", "0": "⁰", "1": "¹", "2": "²", "3": "³", "4": "⁴", "5": "⁵", "6": "⁶", "7": "⁷", "8": "⁸", "9": "⁹",
};

/** A power of ten as its exponent in small raised digits. */
export function power(exponent: number): string {
  return `10${[...String(exponent)].map((digit) => DIGITS[digit] ?? "").join("")}`;
}

/** By a format of Python's, such as ".3g" or ".1%". */
export function formatted(value: number, specifier = ".3g"): string {
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0 && /[eg]$/.test(specifier)) return "0";
  const text = /[eg]$/.test(specifier) ? general(value, specifier) : format(specifier)(value);
  const [mantissa, exponent] = text.split("e");
  if (exponent === undefined) return text;
  const lead = mantissa === "1" || mantissa === "−1" ? (mantissa ?? "").replace("1", "") : `${mantissa} × `;
  return `${lead}${power(Number(exponent))}`;
}

/** Python's "g": powers of ten only below 1e-4 and from the number of digits on, no trailing zeros. */
function general(value: number, specifier: string): string {
  const digits = Math.max(1, Number(/\.(\d+)/.exec(specifier)?.[1] ?? 6));
  const exponent = Math.floor(Math.log10(Math.abs(value)));
  const scientific = specifier.endsWith("e") || exponent < -4 || exponent >= Math.max(digits, 5);
  if (scientific) return format(specifier.endsWith("e") ? specifier : `.${digits - 1}~e`)(value);
  return format(`.${digits}~r`)(value);
}

/** What a readout shows. */
export function shown(readout: Readout): string {
  const value = numberOf(readout.value);
  return value === null ? String(readout.value) : formatted(value, readout.format ?? ".3g");
}
