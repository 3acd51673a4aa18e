/** What the server says: specs of figures, views, errors. Kept in step with explorer/figure.py. */

export type Value = number | string | boolean | string[];
export type Params = Record<string, Value>;

interface ControlBase {
  name: string;
  label: string;
  help?: string;
  /** Shown only while every named control has one of the values. */
  when?: Record<string, Value[]> | null;
}
export interface RangeControl extends ControlBase {
  kind: "range";
  low: number;
  high: number;
  step: number;
  default: number;
  integer?: boolean;
  log?: boolean;
  unit?: string;
}
export interface ChoiceControl extends ControlBase {
  kind: "choice";
  options: [string, string][];
  default: string;
}
export interface ManyControl extends ControlBase {
  kind: "many";
  options: [string, string][];
  default: string[];
  most: number;
}
export interface SwitchControl extends ControlBase {
  kind: "switch";
  default: boolean;
}
export interface TextControl extends ControlBase {
  kind: "text";
  default: string;
  longest: number;
  hint?: string;
}
export type Control = RangeControl | ChoiceControl | ManyControl | SwitchControl | TextControl;

export interface FigureSpec {
  name: string;
  title: string;
  text: string;
  controls: Control[];
}
export interface Hello {
  version: string;
  figures: FigureSpec[];
  ready: boolean;
}

/** Numbers of any shape, row-major. */
export interface Tensor {
  shape: number[];
  data: Float32Array;
}
export interface Axis {
  label: string;
  low?: number | null;
  high?: number | null;
  log?: boolean;
  reverse?: boolean;
}
export interface Style {
  dash?: boolean | string | number[];
  width?: number;
  opacity?: number;
  dots?: boolean;
  size?: number;
  extent?: [number, number, number, number];
  x?: number;
  y?: number;
  diverging?: boolean;
  rows?: (string | number)[] | (string | number)[][];
  cols?: (string | number)[];
  columns?: number | string[];
  labels?: string[];
  side?: "diffusion" | "flow";
}
export interface Mark {
  kind: "line" | "paths" | "points" | "stems" | "field" | "area" | "text" | "heat" | "images" | "table";
  label?: string;
  group?: number | null;
  arrays: Record<string, Tensor>;
  style: Style;
}
export interface Panel {
  kind: "plot" | "heat" | "images" | "table";
  title: string;
  x?: Axis | null;
  y?: Axis | null;
  marks: Mark[];
  caption?: string;
}
/** A live readout; "nan", "inf" and "-inf" stand for what JSON cannot say. */
export interface Readout {
  name: string;
  label: string;
  value: number | string;
  format?: string;
}
export interface View {
  panels: Panel[];
  numbers: Readout[];
  notes: string[];
  python: string;
  cli: string;
}
export interface Reply {
  req: number;
  figure: string;
  ms: number;
  view: View;
}
export interface Failure {
  message: string;
  control?: string | null;
  code: "invalid" | "busy" | "internal";
}

/** The message of a reply: header length, header, then float32 that the header points into. */
export function decodeReply(message: ArrayBuffer): Reply {
  const length = new DataView(message).getUint32(0, true);
  const reply = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, length))) as Reply;
  for (const panel of reply.view.panels) {
    for (const mark of panel.marks) {
      mark.style ??= {};
      for (const [name, array] of Object.entries(mark.arrays ?? {})) {
        mark.arrays[name] = tensor(message, 4 + length, array as unknown as { shape: number[]; offset: number });
      }
    }
  }
  return reply;
}

function tensor(message: ArrayBuffer, start: number, at: { shape: number[]; offset: number }): Tensor {
  const size = at.shape.reduce((product, n) => product * n, 1);
  return { shape: at.shape, data: new Float32Array(message, start + 4 * at.offset, size) };
}

/** The number that a readout or a table cell stands for. */
export function numberOf(value: number | string): number | null {
  if (typeof value === "number") return value;
  const words: Record<string, number> = { nan: NaN, inf: Infinity, "-inf": -Infinity };
  return words[value] ?? null;
}
