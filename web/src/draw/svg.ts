/** What the drawings share: SVG elements, text with indices and powers, colours of numbers. */

import { create, type Selection } from "d3-selection";

import { runs } from "../mathtext";
import { resolved } from "../theme";

export type Group = Selection<SVGGElement, undefined, null, undefined>;
export type Root = Selection<SVGSVGElement, undefined, null, undefined>;

/** A point that the pointer can ask about, in pixels of the drawing. */
export interface Target {
  x: number;
  y: number;
  says: string;
}
export interface Drawing {
  element: SVGSVGElement | HTMLElement;
  /** The nearest datum to a place, if one is near. */
  near?: (x: number, y: number) => Target | null;
}

export function root(width: number, height: number, says: string): Root {
  return create("svg")
    .attr("xmlns", "http://www.w3.org/2000/svg")
    .attr("width", width)
    .attr("height", height)
    .attr("viewBox", `0 0 ${width} ${height}`)
    .attr("role", "img")
    .attr("aria-label", says) as unknown as Root;
}

const RAISE = 0.38; // of the size of what is raised

/** A label with $TeX$ as one text element of spans. */
export function label(parent: Group | Root, text: string, x: number, y: number, anchor = "start", cls = "label"): SVGTextElement {
  const element = (parent as Group).append("text").attr("x", x).attr("y", y).attr("class", cls).style("text-anchor", anchor);
  let before = 0;
  for (const run of runs(text)) {
    const span = element.append("tspan").text(run.text);
    span.attr("class", [run.italic ? "math" : "", run.shift === 0 ? "" : "raised"].join(" ").trim() || null);
    // dy is in units of the span's own size
    const now = -run.shift * RAISE;
    const move = run.shift === 0 ? -before * 0.75 : now - before;
    if (move !== 0) span.attr("dy", `${move.toFixed(3)}em`);
    before = now;
  }
  return element.node() as SVGTextElement;
}

let ruler: CanvasRenderingContext2D | null = null;

/** The width of a label in pixels, nearly. */
export function textWidth(text: string, size = 13): number {
  ruler ??= document.createElement("canvas").getContext("2d");
  if (!ruler) return 0.55 * size * text.length;
  ruler.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return runs(text).reduce((sum, run) => sum + (ruler as CanvasRenderingContext2D).measureText(run.text).width * (run.shift ? 0.75 : 1), 0);
}

/** A picture of h times w cells as a data URL; `paint` gives red, green, blue and opacity of 0..255. */
export function picture(height: number, width: number, paint: (row: number, column: number) => number[], zoom = 1): string {
  const canvas = Object.assign(document.createElement("canvas"), { width: width * zoom, height: height * zoom });
  const context = canvas.getContext("2d");
  if (!context) return "";
  const image = context.createImageData(width * zoom, height * zoom);
  for (let i = 0; i < height * zoom; i++) {
    for (let j = 0; j < width * zoom; j++) {
      image.data.set(paint(Math.floor(i / zoom), Math.floor(j / zoom)), 4 * (i * width * zoom + j));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

/** Red, green, blue of a colour variable as it is now. */
export function channels(variable: string): [number, number, number] {
  const numbers = resolved(variable).match(/[\d.]+/g)?.map(Number) ?? [];
  return [numbers[0] ?? 0, numbers[1] ?? 0, numbers[2] ?? 0];
}
