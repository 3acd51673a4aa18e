/** Matrices as cells of colour, with their numbers where there is room. */

import { interpolateRgb } from "d3-interpolate";
import { rgb } from "d3-color";

import type { Mark, Panel, Tensor } from "../contract";
import { formatted } from "../format";
import { spoken } from "../mathtext";
import { resolved } from "../theme";
import { label, picture, root, textWidth, type Drawing, type Root, type Target } from "./svg";

const BAR = 10;

interface Layout {
  left: number;
  top: number;
  cell: number;
  tall: number;
  rows: number;
  columns: number;
}

export function heat(panel: Panel, width: number): Drawing {
  const mark = panel.marks[0] as Mark;
  const tensor = mark.arrays["v"] as Tensor;
  const at = layout(mark, tensor, panel, width);
  const colours = ramp(tensor, Boolean(mark.style.diverging));
  const bottom = at.top + at.rows * at.tall;
  const svg = root(width, bottom + (panel.x?.label ? 44 : 24) + BAR + 34, spoken(panel.title));
  cells(svg, tensor, at, colours.of);
  captions(svg, mark, panel, at);
  if (Math.min(at.cell / 3, at.tall) >= 13) numbers(svg, tensor, at, colours.of);
  scaleBar(svg, colours, at, bottom + (panel.x?.label ? 50 : 30));
  return { element: svg.node() as SVGSVGElement, near: (x, y) => cellAt(tensor, mark, at, x, y) };
}

function layout(mark: Mark, tensor: Tensor, panel: Panel, width: number): Layout {
  const [rows = 1, columns = 1] = tensor.shape;
  const names = rowNames(mark, rows);
  const left = Math.min(width * 0.4, Math.max(...names.map((name) => textWidth(name, 12))) + 10);
  const cell = Math.min(56, (width - left - 12) / columns);
  return { left, top: panel.y?.label ? 28 : 8, cell, tall: Math.max(Math.min(cell, 34), Math.min(14, 400 / rows)), rows, columns };
}

function rowNames(mark: Mark, rows: number): string[] {
  return (mark.style.rows as (string | number)[] | undefined)?.map(String) ?? Array.from({ length: rows }, (_, i) => String(i + 1));
}

interface Ramp {
  of: (value: number) => string;
  low: number;
  high: number;
}

/** From the page's colour outwards, so that nothing looks like nothing; both ways if diverging. */
function ramp({ data }: Tensor, diverging: boolean): Ramp {
  const finite = [...data].filter(Number.isFinite);
  const most = Math.max(...finite.map(Math.abs), 0) || 1;
  const low = diverging ? -most : Math.min(...finite, 0);
  const high = diverging ? most : Math.max(...finite, low + 1e-30);
  const up = interpolateRgb(resolved("--card"), resolved("--flow"));
  const down = interpolateRgb(resolved("--card"), resolved("--diffusion"));
  const of = (value: number) => {
    if (!Number.isFinite(value)) return resolved("--line");
    // by the root, so that one large weight does not hide the small ones
    if (diverging) return value >= 0 ? up(Math.sqrt(value / most)) : down(Math.sqrt(-value / most));
    return up((value - low) / (high - low));
  };
  return { of, low, high };
}

function cells(svg: Root, { data }: Tensor, at: Layout, of: (value: number) => string): void {
  const paint = (row: number, column: number) => {
    const { r, g, b } = rgb(of(data[row * at.columns + column] ?? NaN));
    return [r, g, b, 255];
  };
  const zoom = Math.max(1, Math.ceil(Math.max(at.cell, at.tall) / 4));
  svg.append("image").attr("class", "pixels").attr("preserveAspectRatio", "none")
    .attr("href", picture(at.rows, at.columns, paint, Math.min(zoom, 8)))
    .attr("x", at.left).attr("y", at.top).attr("width", at.cell * at.columns).attr("height", at.tall * at.rows);
  svg.append("rect").attr("class", "frame").attr("x", at.left).attr("y", at.top)
    .attr("width", at.cell * at.columns).attr("height", at.tall * at.rows);
}

function captions(svg: Root, mark: Mark, panel: Panel, at: Layout): void {
  const every = stride(14 / at.tall);
  rowNames(mark, at.rows).forEach((name, i) => {
    if ((i + 1) % every === 0) label(svg, name, at.left - 6, at.top + (i + 0.5) * at.tall + 4, "end", "label small");
  });
  const names = mark.style.cols?.map(String) ?? Array.from({ length: at.columns }, (_, i) => String(i + 1));
  const apart = stride((Math.max(...names.map((name) => textWidth(name, 12))) + 8) / at.cell);
  const under = at.top + at.rows * at.tall;
  names.forEach((name, i) => {
    if ((i + 1) % apart === 0) label(svg, name, at.left + (i + 0.5) * at.cell, under + 16, "middle", "label small");
  });
  if (panel.y?.label) label(svg, panel.y.label, 0, 14, "start", "label title");
  if (panel.x?.label) label(svg, panel.x.label, at.left + (at.cell * at.columns) / 2, under + 36, "middle", "label title");
}

/** The least of 1, 2, 5, 10, 20, ... that leaves room. */
function stride(least: number): number {
  const decade = 10 ** Math.floor(Math.log10(Math.max(1, least)));
  return [1, 2, 5, 10].map((n) => n * decade).find((n) => n >= least) ?? 10 * decade;
}

function numbers(svg: Root, { data }: Tensor, at: Layout, of: (value: number) => string): void {
  data.forEach((value, i) => {
    if (value === 0) return;
    const { r, g, b } = rgb(of(value));
    const dark = 0.299 * r + 0.587 * g + 0.114 * b < 140;
    const [row, column] = [Math.floor(i / at.columns), i % at.columns];
    const text = label(svg, formatted(value, ".2g"), at.left + (column + 0.5) * at.cell, at.top + (row + 0.5) * at.tall + 4, "middle", "label cell");
    text.style.fill = dark ? "#fff" : "#101318";
  });
}

function scaleBar(svg: Root, { of, low, high }: Ramp, at: Layout, y: number): void {
  const steps = 64;
  const width = Math.min(220, at.cell * at.columns);
  const paint = (_: number, column: number) => {
    const { r, g, b } = rgb(of(low + ((high - low) * column) / (steps - 1)));
    return [r, g, b, 255];
  };
  svg.append("image").attr("href", picture(1, steps, paint)).attr("preserveAspectRatio", "none")
    .attr("x", at.left).attr("y", y).attr("width", width).attr("height", BAR);
  svg.append("rect").attr("class", "frame").attr("x", at.left).attr("y", y).attr("width", width).attr("height", BAR);
  label(svg, formatted(low, ".2g"), at.left, y + BAR + 15, "start", "label small");
  if (low < 0) label(svg, "0", at.left + width / 2, y + BAR + 15, "middle", "label small");
  label(svg, formatted(high, ".2g"), at.left + width, y + BAR + 15, "end", "label small");
}

function cellAt({ data }: Tensor, mark: Mark, at: Layout, x: number, y: number): Target | null {
  const column = Math.floor((x - at.left) / at.cell);
  const row = Math.floor((y - at.top) / at.tall);
  if (column < 0 || row < 0 || column >= at.columns || row >= at.rows) return null;
  const names = [rowNames(mark, at.rows)[row] ?? "", String(mark.style.cols?.[column] ?? column + 1)].map(spoken);
  const value = formatted(data[row * at.columns + column] ?? NaN, ".4g");
  return { x: at.left + (column + 0.5) * at.cell, y: at.top + (row + 0.5) * at.tall, says: `${names.join(", ")}: ${value}` };
}
