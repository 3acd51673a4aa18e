/** The marks inside a plot, one function each: a new kind of mark is a row of MARKS. */

import { area, line } from "d3-shape";

import type { Mark, Tensor } from "../contract";
import { colour } from "../theme";
import type { Scale } from "./axes";
import { channels, label, picture, type Group } from "./svg";

export interface Place {
  x: Scale;
  y: Scale;
  /** This mark among the stems of the plot, so that they stand side by side. */
  stem: { index: number; count: number };
}
type Draws = (parent: Group, mark: Mark, place: Place) => void;

export const MARKS: Record<string, Draws> = { line: oneLine, paths, points, stems, field, area: band, text };

/** The numbers of a mark's array; none if it has no such array. */
export function values(mark: Mark, name: string): Float32Array {
  return mark.arrays[name]?.data ?? new Float32Array();
}

function curve(place: Place, x: Float32Array, y: Float32Array, from = 0, to = x.length): string {
  const draw = line<number>((i) => place.x(x[i] ?? NaN), (i) => place.y(y[i] ?? NaN))
    .defined((i) => Number.isFinite(place.x(x[i] ?? NaN)) && Number.isFinite(place.y(y[i] ?? NaN)));
  return draw(indices(from, to)) ?? "";
}

function indices(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

function dashes({ dash }: Mark["style"]): string | null {
  if (!dash) return null;
  if (dash === true || dash === "dashed") return "6 4";
  if (dash === "dotted") return "1.5 4";
  return Array.isArray(dash) ? dash.join(" ") : dash;
}

function stroke(parent: Group, mark: Mark, d: string, width: number, opacity: number): void {
  parent.append("path").attr("class", "stroke").attr("d", d).attr("stroke-dasharray", dashes(mark.style))
    .style("stroke", `var(${colour(mark)})`)
    .style("stroke-width", `${mark.style.width ?? width}px`)
    .style("opacity", String(mark.style.opacity ?? opacity));
}

function dots(parent: Group, mark: Mark, place: Place, size: number, opacity: number): void {
  const x = values(mark, "x");
  const y = values(mark, "y");
  let d = "";
  for (let i = 0; i < x.length; i++) {
    const [px, py] = [place.x(x[i] ?? NaN), place.y(y[i] ?? NaN)];
    if (Number.isFinite(px) && Number.isFinite(py)) d += `M${px.toFixed(1)},${py.toFixed(1)}h.01`;
  }
  parent.append("path").attr("class", "stroke").attr("d", d)
    .style("stroke", `var(${colour(mark)})`)
    .style("stroke-width", `${size}px`)
    .style("opacity", String(mark.style.opacity ?? opacity));
}

function oneLine(parent: Group, mark: Mark, place: Place): void {
  stroke(parent, mark, curve(place, values(mark, "x"), values(mark, "y")), 2, 1);
  if (mark.style.dots) dots(parent, mark, place, mark.style.size ?? 6.5, 1);
}

function paths(parent: Group, mark: Mark, place: Place): void {
  const [count = 0, length = 0] = mark.arrays["x"]?.shape ?? [];
  const all = indices(0, count).map((k) => curve(place, values(mark, "x"), values(mark, "y"), k * length, (k + 1) * length));
  const opacity = Math.max(0.25, Math.min(0.9, 12 / count));
  // one element a path, so that crossings darken
  for (const d of all) stroke(parent, mark, d, 1.3, opacity);
  if (mark.style.dots) dots(parent, mark, place, mark.style.size ?? 4.5, opacity);
}

function points(parent: Group, mark: Mark, place: Place): void {
  const count = values(mark, "x").length;
  dots(parent, mark, place, mark.style.size ?? (count > 400 ? 3.5 : count > 60 ? 5 : 8), count > 400 ? 0.5 : 0.85);
}

function stems(parent: Group, mark: Mark, place: Place): void {
  const x = values(mark, "x");
  const y = values(mark, "y");
  const [bottom = 0, top = 0] = place.y.range();
  const zero = Math.min(Math.max(place.y(0), top), bottom);
  const foot = Number.isFinite(zero) ? zero : bottom; // a logarithmic axis has no zero
  const width = Math.min(22, (0.8 * spacing(x, place.x)) / place.stem.count);
  const thick = width < 4 ? width / 0.8 : width - 1; // gaps thinner than a pixel would flicker
  const shift = (place.stem.index - (place.stem.count - 1) / 2) * width;
  let d = "";
  for (let i = 0; i < x.length; i++) {
    const head = place.y(y[i] ?? NaN);
    if (Number.isFinite(head)) d += `M${(place.x(x[i] ?? NaN) + shift).toFixed(2)},${foot}V${head.toFixed(2)}`;
  }
  parent.append("path").attr("class", "stroke flat").attr("d", d)
    .style("stroke", `var(${colour(mark)})`)
    .style("stroke-width", `${mark.style.width ?? Math.max(1, thick)}px`)
    .style("opacity", String(mark.style.opacity ?? 0.9));
}

function spacing(x: Float32Array, to: Scale): number {
  const places = [...x].map((value) => to(value)).filter(Number.isFinite).sort((a, b) => a - b);
  const gaps = places.slice(1).map((place, i) => place - (places[i] ?? 0)).filter((gap) => gap > 0.01);
  const [first = 0, last = 0] = to.range();
  return gaps.length > 0 ? Math.min(...gaps) : Math.abs(last - first) / 4;
}

function band(parent: Group, mark: Mark, place: Place): void {
  const [x, low, high] = [values(mark, "x"), values(mark, "y0"), values(mark, "y1")];
  const draw = area<number>()
    .x((i) => place.x(x[i] ?? NaN)).y0((i) => place.y(low[i] ?? NaN)).y1((i) => place.y(high[i] ?? NaN))
    .defined((i) => [place.x(x[i] ?? NaN), place.y(low[i] ?? NaN), place.y(high[i] ?? NaN)].every(Number.isFinite));
  parent.append("path").attr("class", "area").attr("d", draw(indices(0, x.length)) ?? "")
    .style("fill", `var(${colour(mark)})`)
    .style("opacity", String(mark.style.opacity ?? 0.2));
}

function text(parent: Group, mark: Mark, place: Place): void {
  const [x, y] = [place.x(mark.style.x ?? 0), place.y(mark.style.y ?? 0)];
  const [first = 0, last = 0] = place.x.range();
  const anchor = x > first + 0.75 * (last - first) ? "end" : "start";
  label(parent, mark.label ?? "", x, y, anchor, "label remark");
}

/** A density as a veil of one colour: the page shows through where there is none. */
function field(parent: Group, mark: Mark, place: Place): void {
  const { shape: [height = 0, width = 0], data } = mark.arrays["v"] as Tensor;
  const most = data.reduce((a, b) => Math.max(a, b), 0) || 1;
  const [red, green, blue] = channels(colour(mark));
  const veil = 255 * (mark.style.opacity ?? 0.6);
  const paint = (row: number, column: number) => {
    const value = Math.max(0, data[(height - 1 - row) * width + column] ?? 0) / most;
    return [red, green, blue, veil * value ** 0.7];
  };
  const [x0, x1, y0, y1] = mark.style.extent ?? [...place.x.domain(), ...place.y.domain()];
  const [left, right] = [place.x(x0 ?? 0), place.x(x1 ?? 1)].sort((a, b) => a - b) as [number, number];
  const [upper, lower] = [place.y(y0 ?? 0), place.y(y1 ?? 1)].sort((a, b) => a - b) as [number, number];
  parent.append("image").attr("href", picture(height, width, paint)).attr("preserveAspectRatio", "none")
    .attr("x", left).attr("y", upper).attr("width", right - left).attr("height", lower - upper);
}
