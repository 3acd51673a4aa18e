/** Cartesian plots: a legend, axes, and the marks. */

import type { Axis, Mark, Panel } from "../contract";
import { formatted } from "../format";
import { spoken } from "../mathtext";
import { colour } from "../theme";
import { axes, scale, ticks, widest, type Box, type Scale } from "./axes";
import { MARKS, values, type Place } from "./marks";
import { label, root, textWidth, type Drawing, type Group, type Root, type Target } from "./svg";

const PLAIN: Axis = { label: "" };
const LINE = 20;
const NEAR = 28; // pixels
const NOTHING = "nothing to draw with these settings";
let drawings = 0;

export function plot(panel: Panel, width: number): Drawing {
  const x = panel.x ?? PLAIN;
  const y = panel.y ?? PLAIN;
  const keys = legend(panel.marks, width);
  const top = LINE * keys.rows + (y.label ? 34 : 12);
  const box = { left: 0, top, width, height: 0 };
  const yScale = sized(panel, y, box, width);
  const xScale = scale(x, all(panel.marks, ["x"]), [box.left, box.left + box.width]);
  const bottom = x.label ? 48 : 28;
  const svg = root(width, box.top + box.height + bottom, says(panel));
  keys.draw(svg);
  if (y.label) label(svg, y.label, 0, top - 15, "start", "label title");
  if (x.label) label(svg, x.label, box.left + box.width / 2, box.top + box.height + 42, "middle", "label title");
  const xTicks = ticks(xScale, Boolean(x.log), Math.max(3, Math.floor(box.width / 72)));
  axes(svg as unknown as Group, box, xScale, yScale.scale, xTicks, yScale.ticks);
  if (panel.marks.length === 0) label(svg, NOTHING, box.left + box.width / 2, box.top + box.height / 2, "middle", "label title");
  drawMarks(svg, panel.marks, box, xScale, yScale.scale);
  return { element: svg.node() as SVGSVGElement, near: finder(panel, xScale, yScale.scale) };
}

/** Settles the box: the left margin is as wide as the ticks, the plane's pixels are square. */
function sized(panel: Panel, y: Axis, box: Box, width: number): { scale: Scale; ticks: ReturnType<typeof ticks> } {
  box.height = Math.round(Math.min(380, Math.max(210, 0.6 * width)));
  const upright = () => scale(y, all(panel.marks, ["y", "y0", "y1"]), [box.top + box.height, box.top]);
  const marks = () => ticks(upright(), Boolean(y.log), Math.max(2, Math.floor(box.height / 46)));
  box.left = Math.ceil(widest(marks())) + 14;
  box.width = width - box.left - 12;
  if (isPlane(panel)) {
    box.width = Math.min(box.width, 500);
    box.height = box.width;
  }
  return { scale: upright(), ticks: marks() };
}

/** A plane of data has equal spans and things placed in it; curves over an axis do not. */
function isPlane({ x, y, marks }: Panel): boolean {
  if (!x || !y || x.log || y.log) return false;
  const spans = [x, y].map(({ low, high }) => (high ?? NaN) - (low ?? NaN)) as [number, number];
  return Math.abs(spans[0] - spans[1]) < 1e-9 && marks.some(({ kind }) => ["points", "paths", "field"].includes(kind));
}

function* all(marks: Mark[], names: string[]): Iterable<number> {
  for (const mark of marks) for (const name of names) yield* values(mark, name);
  if (names.includes("y") && marks.some(({ kind }) => kind === "stems")) yield 0;
}

function drawMarks(svg: Root, marks: Mark[], box: Box, x: Scale, y: Scale): void {
  const clip = `inside-${++drawings}`;
  svg.append("clipPath").attr("id", clip).append("rect")
    .attr("x", box.left).attr("y", box.top - 1).attr("width", box.width + 1).attr("height", box.height + 2);
  const inside = svg.append("g").attr("clip-path", `url(#${clip})`) as unknown as Group;
  const stems = marks.filter(({ kind }) => kind === "stems");
  const ordered = [...marks].sort((a, b) => Number(b.kind === "field") - Number(a.kind === "field"));
  for (const mark of ordered) {
    const place: Place = { x, y, stem: { index: stems.indexOf(mark), count: stems.length } };
    MARKS[mark.kind]?.(inside, mark, place);
  }
}

function legend(marks: Mark[], width: number): { rows: number; draw: (svg: Root) => void } {
  const named = marks.filter(({ kind, label }) => label && kind !== "text");
  const items = named.filter((mark, i) => named.findIndex((other) => key(other) === key(mark)) === i);
  let [x, row] = [0, 0];
  const places = items.map((mark) => {
    const space = 26 + textWidth(mark.label ?? "") + 18;
    if (x > 0 && x + space - 18 > width) [x, row] = [0, row + 1];
    const place = { mark, x, y: LINE * row + 14 };
    x += space;
    return place;
  });
  const draw = (svg: Root) => {
    for (const { mark, x, y } of places) {
      swatch(svg, mark, x, y - 4);
      label(svg, mark.label ?? "", x + 26, y);
    }
  };
  return { rows: items.length > 0 ? row + 1 : 0, draw };
}

function key(mark: Mark): string {
  return [mark.label, colour(mark), mark.style.dash ?? ""].join("|");
}

function swatch(svg: Root, mark: Mark, x: number, y: number): void {
  const dot = mark.kind === "points";
  const block = ["area", "field", "stems"].includes(mark.kind);
  const dash = mark.style.dash ? (mark.style.dash === "dotted" ? "1.5 4" : "5 3") : null;
  svg.append("path").attr("class", block ? "stroke flat" : "stroke")
    .attr("d", dot ? `M${x + 9},${y}h.01` : `M${x + 1},${y}h18`)
    .attr("stroke-dasharray", dash)
    .style("stroke", `var(${colour(mark)})`)
    .style("stroke-width", block ? "10px" : dot ? "8px" : "2.5px")
    .style("opacity", mark.kind === "area" || mark.kind === "field" ? "0.5" : "1");
}

function says(panel: Panel): string {
  const names = [...new Set(panel.marks.map((mark) => spoken(mark.label ?? "")).filter(Boolean))];
  const over = panel.y?.label && panel.x?.label ? `: ${spoken(panel.y.label)} over ${spoken(panel.x.label)}` : "";
  return `${spoken(panel.title)}${over}${names.length > 0 ? `; shown: ${names.join(", ")}` : ""}`;
}

function finder(panel: Panel, x: Scale, y: Scale): (px: number, py: number) => Target | null {
  return (px, py) => {
    let best: Target | null = null;
    let least = NEAR * NEAR;
    for (const mark of panel.marks) {
      const [xs, ys] = [values(mark, "x"), values(mark, "y")];
      for (let i = 0; i < Math.min(xs.length, ys.length); i++) {
        const [atX, atY] = [x(xs[i] ?? NaN), y(ys[i] ?? NaN)];
        const distance = (atX - px) ** 2 + (atY - py) ** 2;
        if (distance >= least) continue;
        least = distance;
        best = { x: atX, y: atY, says: datum(mark, xs[i] ?? NaN, ys[i] ?? NaN) };
      }
    }
    return best;
  };
}

function datum(mark: Mark, x: number, y: number): string {
  const name = mark.label ? `${spoken(mark.label)}: ` : "";
  return `${name}(${formatted(x, ".4g")}, ${formatted(y, ".4g")})`;
}
