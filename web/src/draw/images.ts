/** Pictures in a grid, each with its label below. */

import type { Mark, Panel, Tensor } from "../contract";
import { spoken } from "../mathtext";
import { label, picture, root, type Drawing, type Root } from "./svg";

const GAP = 6;
const CAPTION = 18;

export function images(panel: Panel, width: number): Drawing {
  const blocks = panel.marks.map((mark) => block(mark, width));
  const height = blocks.reduce((sum, { height }) => sum + height, 0);
  const svg = root(width, Math.max(1, height), [panel.title, ...panel.marks.map(({ label }) => label ?? "")].map(spoken).filter(Boolean).join(": "));
  let top = 0;
  for (const one of blocks) {
    one.draw(svg, top);
    top += one.height;
  }
  return { element: svg.node() as SVGSVGElement };
}

function block(mark: Mark, width: number): { height: number; draw: (svg: Root, top: number) => void } {
  const tensor = mark.arrays["v"] as Tensor;
  const [count = 0, tall = 1, wide = 1] = tensor.shape;
  const columns = typeof mark.style.columns === "number" ? mark.style.columns : Math.min(count, 8);
  const cell = Math.min(112, Math.floor((width - GAP * (columns - 1)) / columns));
  const side = Math.round((cell * tall) / wide);
  const pitch = side + GAP + (mark.style.labels?.length ? CAPTION : 0);
  const head = mark.label ? 24 : 0;
  const draw = (svg: Root, top: number) => {
    if (mark.label) label(svg, mark.label, 0, top + 14);
    for (let i = 0; i < count; i++) {
      const x = (i % columns) * (cell + GAP);
      const y = top + head + Math.floor(i / columns) * pitch;
      svg.append("image").attr("class", "pixels").attr("href", pixels(tensor, i, Math.ceil(cell / wide)))
        .attr("x", x).attr("y", y).attr("width", cell).attr("height", side).attr("preserveAspectRatio", "none");
      const name = mark.style.labels?.[i];
      if (name) label(svg, name, x + cell / 2, y + side + 13, "middle", "label small");
    }
  };
  return { height: head + Math.ceil(count / columns) * pitch + GAP, draw };
}

function pixels({ shape, data }: Tensor, index: number, zoom: number): string {
  const [, height = 1, width = 1, colours = 1] = shape;
  const paint = (row: number, column: number) => {
    const at = ((index * height + row) * width + column) * colours;
    const grey = (data[at] ?? 0) * 255;
    return colours === 3 ? [grey, (data[at + 1] ?? 0) * 255, (data[at + 2] ?? 0) * 255, 255] : [grey, grey, grey, 255];
  };
  return picture(height, width, paint, Math.min(8, zoom));
}
