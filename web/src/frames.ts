/** The transport of an exported page: the nearest precomputed frame, never one between frames. */

import { decodeReply, type FigureSpec, type Params, type Value } from "./contract";
import type { Listener, Transport } from "./transport";

interface FigureFrames {
  grid: Record<string, Value[]>;
  params: string[];
  data: string;
}
export interface Frames {
  version: string;
  figures: FigureSpec[];
  frames: Record<string, FigureFrames>;
}

export class Static implements Transport {
  private readonly unpacked = new Map<string, Promise<ArrayBuffer[]>>();
  private newest = 0;

  constructor(
    private readonly frames: Frames,
    private readonly listener: Listener,
  ) {
    const figures = frames.figures.filter((figure) => figure.name in frames.frames);
    listener.hello(frames.version, figures);
    listener.status({ state: "ready" });
  }

  grid(figure: string, control: string): Value[] {
    return this.frames.frames[figure]?.grid[control] ?? [];
  }

  ask(figure: string, params: Params): void {
    this.newest += 1;
    const asked = this.newest;
    void this.frame(figure, params).then(
      (message) => {
        if (asked === this.newest) this.listener.reply(decodeReply(message));
      },
      (reason: unknown) => this.listener.failure({ message: `This page is damaged: ${String(reason)}`, code: "internal" }),
    );
  }

  private async frame(figure: string, params: Params): Promise<ArrayBuffer> {
    const frames = this.frames.frames[figure];
    if (!frames) throw new Error(`no frames of ${figure}`);
    if (!this.unpacked.has(figure)) this.unpacked.set(figure, unpack(frames.data));
    const messages = await (this.unpacked.get(figure) as Promise<ArrayBuffer[]>);
    let index = 0;
    for (const name of frames.params) {
      const values = frames.grid[name] ?? [];
      index = index * values.length + nearest(values, params[name]);
    }
    const message = messages[index];
    if (!message) throw new Error(`no frame ${index} of ${figure}`);
    return message;
  }
}

/** The place of the value that is nearest to the one asked for; the first if none is alike. */
export function nearest(values: readonly unknown[], asked: unknown): number {
  if (typeof asked === "number") {
    const distances = values.map((value) => Math.abs(Number(value) - asked));
    return distances.indexOf(Math.min(...distances));
  }
  const wanted = JSON.stringify(asked);
  return Math.max(0, values.findIndex((value) => JSON.stringify(value) === wanted));
}

/** The parameters that there are frames of, nearest to those asked for. */
export function snapped(params: Params, grid: (control: string) => unknown[] | null): Params {
  return Object.fromEntries(Object.entries(params).map(([name, value]) => {
    const values = grid(name) ?? [];
    return [name, values.length > 0 ? (values[nearest(values, value)] as Value) : value];
  }));
}

async function unpack(base64: string): Promise<ArrayBuffer[]> {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer();
  const view = new DataView(bytes);
  const messages: ArrayBuffer[] = [];
  let at = 4;
  for (let i = 0; i < view.getUint32(0, true); i++) {
    const length = view.getUint32(at, true);
    messages.push(bytes.slice(at + 4, at + 4 + length));
    at += 4 + length;
  }
  return messages;
}
