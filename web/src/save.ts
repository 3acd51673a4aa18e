/** Files of what is shown: one SVG or PNG of all drawings, one CSV of all numbers. */

import type { Mark, Panel, Tensor } from "./contract";
import { spoken } from "./mathtext";
import { resolved } from "./theme";

const PAINT = [
  "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity",
  "font-family", "font-size", "font-style", "font-weight", "text-anchor", "image-rendering",
];
const MARGIN = 24;
const TITLE = 30;
const NAMESPACE = "http://www.w3.org/2000/svg";

export interface Picture {
  title: string;
  svg: SVGSVGElement;
}

/** All drawings below each other, with colours in place of the page's style sheet. */
export function svgText(pictures: Picture[]): { text: string; width: number; height: number } {
  const sizes = pictures.map(({ svg }) => [Number(svg.getAttribute("width")), Number(svg.getAttribute("height"))] as const);
  const width = Math.max(...sizes.map(([wide]) => wide)) + 2 * MARGIN;
  const height = sizes.reduce((sum, [, tall]) => sum + tall + TITLE + MARGIN, MARGIN);
  const all = made("svg", { xmlns: NAMESPACE, width, height, viewBox: `0 0 ${width} ${height}` });
  all.append(made("rect", { width, height, fill: resolved("--card") }));
  let top = MARGIN;
  pictures.forEach(({ title, svg }, i) => {
    const heading = made("text", { x: MARGIN, y: top + 14, fill: resolved("--ink"), "font-family": "sans-serif", "font-size": 15, "font-weight": 600 });
    heading.textContent = spoken(title).replaceAll("*", "").replaceAll("`", "");
    const copy = painted(svg);
    copy.setAttribute("x", String(MARGIN));
    copy.setAttribute("y", String(top + TITLE));
    all.append(heading, copy);
    top += (sizes[i]?.[1] ?? 0) + TITLE + MARGIN;
  });
  return { text: new XMLSerializer().serializeToString(all), width, height };
}

function made(tag: string, attributes: Record<string, string | number>): SVGElement {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}

function painted(svg: SVGSVGElement): SVGSVGElement {
  const copy = svg.cloneNode(true) as SVGSVGElement;
  const originals = svg.querySelectorAll<SVGElement>("*");
  copy.querySelectorAll<SVGElement>("*").forEach((element, i) => {
    const style = getComputedStyle(originals[i] as SVGElement);
    element.removeAttribute("style");
    for (const name of PAINT) element.setAttribute(name, style.getPropertyValue(name));
    element.removeAttribute("class");
  });
  return copy;
}

export async function pngBlob(pictures: Picture[], zoom = 2): Promise<Blob> {
  const { text, width, height } = svgText(pictures);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: zoom * width, height: zoom * height });
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the browser made no PNG"))));
  });
}

/** One row for each datum of the drawings; tables follow as they are. */
export function csvText(panels: Panel[]): string {
  const rows: (string | number)[][] = [];
  const tables: (string | number)[][] = [];
  for (const panel of panels) {
    for (const mark of panel.marks) {
      if (mark.kind === "table") tables.push([], (mark.style.columns ?? []) as string[], ...((mark.style.rows ?? []) as string[][]));
      else rows.push(...data(panel, mark));
    }
  }
  const head = ["panel", "kind", "label", "series", "i", "j", "x", "y", "y0", "y1", "value"];
  const blocks = rows.length > 0 ? [head, ...rows, ...tables] : tables.slice(1);
  return blocks.map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function data(panel: Panel, mark: Mark): (string | number)[][] {
  const start = [panel.title, mark.kind, mark.label ?? ""];
  const matrix = mark.arrays["v"];
  if (matrix) return [...matrix.data].map((value, at) => [...start, ...place(matrix, at), "", "", "", "", short(value)]);
  const { x, y, y0, y1 } = mark.arrays;
  if (!x) return [];
  const length = x.shape.at(-1) ?? 1;
  const cell = (tensor: Tensor | undefined, at: number) => (tensor ? short(tensor.data[at] ?? NaN) : "");
  return [...x.data].map((value, at) => [
    ...start, Math.floor(at / length), at % length, "", short(value), cell(y, at), cell(y0, at), cell(y1, at), "",
  ]);
}

/** Of a datum of a stack of matrices: which matrix, row, column. */
function place({ shape }: Tensor, at: number): number[] {
  const [height = 1, width = 1] = shape.length > 2 ? shape.slice(1) : shape;
  const size = shape.length > 2 ? shape.slice(1).reduce((a, b) => a * b, 1) : height * width;
  const depth = size / (height * width);
  const rest = Math.floor((at % size) / depth);
  return [Math.floor(at / size), Math.floor(rest / width), rest % width];
}

/** Without the digits that only come from float32. */
function short(value: number): number {
  return Number(value.toPrecision(8));
}

function quoted(cell: string | number): string {
  const text = String(cell);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function download(name: string, blob: Blob): void {
  const address = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Puts text on the clipboard, in the old way where the new one is not to be had. */
export async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("this browser does not let the page copy");
  }
}
