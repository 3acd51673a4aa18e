/** Scales and axes from the contract's axes. */

import { axisBottom, axisLeft } from "d3-axis";
import { scaleLinear, scaleLog, type ScaleContinuousNumeric } from "d3-scale";

import type { Axis } from "../contract";
import { formatted, power } from "../format";
import { textWidth, type Group } from "./svg";

export type Scale = ScaleContinuousNumeric<number, number>;
export interface Ticks {
  at: number[];
  texts: string[];
}

/** From an axis and the data on it to pixels. A missing end is the data's. */
export function scale(axis: Axis, data: Iterable<number>, range: [number, number]): Scale {
  const [low, high] = extent(axis, data);
  const ends = axis.reverse ? [high, low] : [low, high];
  return (axis.log ? scaleLog() : scaleLinear()).domain(ends).range(range);
}

function extent(axis: Axis, data: Iterable<number>): [number, number] {
  if (typeof axis.low === "number" && typeof axis.high === "number") return [axis.low, axis.high];
  let least = Infinity;
  let most = -Infinity;
  for (const value of data) {
    if (!Number.isFinite(value) || (axis.log && value <= 0)) continue;
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  if (least > most) [least, most] = axis.log ? [0.1, 1] : [0, 1];
  const pad = axis.log ? 1 : 0.04 * (most - least || 1);
  // zero is an end of its own: bars stand on it
  const low = axis.log ? least / 1.3 : least === 0 ? 0 : least - pad;
  const high = axis.log ? most * 1.3 : most === 0 ? 0 : most + pad;
  return [axis.low ?? low, axis.high ?? high];
}

/** About `count` ticks and their texts. */
export function ticks(scale: Scale, log: boolean, count: number): Ticks {
  const domain = scale.domain();
  const low = Math.min(...domain);
  const high = Math.max(...domain);
  if (log && Math.log10(high / low) >= 1.5) return decades(low, high, count);
  if (log) return few(scale.ticks(), count);
  const at = scale.ticks(count);
  const kept = at.length > 2 * count ? at.filter((_, i) => i % Math.ceil(at.length / count) === 0) : at;
  const largest = Math.max(...kept.map(Math.abs));
  const plain = largest < 1e5 && largest >= 1e-3;
  const text = plain ? scale.tickFormat(count) : (value: number) => formatted(value, ".3g");
  return { at: kept, texts: kept.map((value) => text(value)) };
}

/** Of a logarithmic axis that spans no two decades: 1, 2, 5 of each, or all if these are too few. */
function few(at: number[], count: number): Ticks {
  const round = at.filter((value) => /^[125]0*$/.test(value.toExponential(6).replace(/[.]|e.*/g, "")));
  const kept = round.length >= 2 ? round : at;
  const thinned = kept.filter((_, i) => i % Math.ceil(kept.length / Math.max(4, count)) === 0);
  return { at: thinned, texts: thinned.map((value) => formatted(value, ".6g")) };
}

function decades(low: number, high: number, count: number): Ticks {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  const stride = Math.max(1, Math.ceil((last - first + 1) / count));
  const exponents = Array.from({ length: last - first + 1 }, (_, i) => first + i).filter((e) => (e - first) % stride === 0);
  const small = first >= -2 && last <= 3;
  return { at: exponents.map((e) => 10 ** e), texts: exponents.map((e) => (small ? formatted(10 ** e, ".6g") : power(e))) };
}

export function widest(ticks: Ticks): number {
  return Math.max(0, ...ticks.texts.map((text) => textWidth(text, 12)));
}

export interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Both axes and a quiet grid. */
export function axes(parent: Group, box: Box, x: Scale, y: Scale, xTicks: Ticks, yTicks: Ticks): void {
  const grid = parent.append("g").attr("class", "grid");
  for (const value of xTicks.at) grid.append("path").attr("d", `M${x(value)},${box.top}v${box.height}`);
  for (const value of yTicks.at) grid.append("path").attr("d", `M${box.left},${y(value)}h${box.width}`);
  const text = (ticks: Ticks) => (_: unknown, i: number) => ticks.texts[i] ?? "";
  parent.append("g").attr("class", "axis").attr("transform", `translate(0,${box.top + box.height})`)
    .call(axisBottom(x).tickValues(xTicks.at).tickFormat(text(xTicks)).tickSizeInner(4).tickSizeOuter(0).tickPadding(6));
  parent.append("g").attr("class", "axis").attr("transform", `translate(${box.left},0)`)
    .call(axisLeft(y).tickValues(yTicks.at).tickFormat(text(yTicks)).tickSizeInner(4).tickSizeOuter(0).tickPadding(6));
}
