/** Where views come from: a server behind a WebSocket, or frames inside the page. */

import { decodeReply, type Failure, type FigureSpec, type Hello, type Params, type Reply } from "./contract";

export type Status =
  | { state: "connecting" }
  | { state: "starting" }
  | { state: "ready" }
  | { state: "lost"; seconds: number }
  | { state: "refused" };

export interface Listener {
  hello(version: string, figures: FigureSpec[]): void;
  status(status: Status): void;
  reply(reply: Reply): void;
  failure(failure: Failure): void;
}

export interface Transport {
  /** The values that a control can take, if not all; an empty list fixes it at its default. */
  grid(figure: string, control: string): unknown[] | null;
  /** Asks for a view; of several asked in a row only the last must be answered. */
  ask(figure: string, params: Params): void;
}

interface Question {
  req: number;
  figure: string;
  params: Params;
}

const SLOWEST_RETRY = 8;

/** One question on the way and the newest waiting; what lies between is never sent. */
export class Socket implements Transport {
  private socket: WebSocket | null = null;
  private ready = false;
  private sent: Question | null = null;
  private waiting: Question | null = null;
  private newest = 0;
  private retry = 1;

  constructor(
    private readonly url: string,
    private readonly token: string,
    private readonly listener: Listener,
  ) {
    this.connect();
  }

  grid(): null {
    return null;
  }

  ask(figure: string, params: Params): void {
    this.newest += 1;
    this.waiting = { req: this.newest, figure, params };
    this.send();
  }

  private connect(): void {
    this.listener.status({ state: "connecting" });
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify({ token: this.token }));
    socket.onmessage = (event: MessageEvent<string | ArrayBuffer>) => this.receive(event.data);
    socket.onclose = (event) => this.closed(event.code);
    this.socket = socket;
  }

  private closed(code: number): void {
    this.ready = false;
    this.waiting ??= this.sent;
    this.sent = null;
    if (code === 4401) {
      this.listener.status({ state: "refused" });
      return;
    }
    this.listener.status({ state: "lost", seconds: this.retry });
    setTimeout(() => this.connect(), 1000 * this.retry);
    this.retry = Math.min(2 * this.retry, SLOWEST_RETRY);
  }

  private receive(data: string | ArrayBuffer): void {
    if (data instanceof ArrayBuffer) {
      const reply = decodeReply(data);
      this.answered(reply.req, () => this.listener.reply(reply));
      return;
    }
    const message = JSON.parse(data) as { hello?: Hello; ready?: boolean; req?: number | null; error?: Failure };
    if (message.hello) {
      this.retry = 1;
      this.ready = message.hello.ready;
      this.listener.hello(message.hello.version, message.hello.figures);
      this.listener.status({ state: this.ready ? "ready" : "starting" });
    } else if (message.ready) {
      this.ready = true;
      this.listener.status({ state: "ready" });
    } else if (message.error) {
      const failure = message.error;
      this.answered(message.req ?? null, () => this.listener.failure(failure));
    }
    this.send();
  }

  /** An answer to anything but the question on the way is stale. */
  private answered(req: number | null, deliver: () => void): void {
    if (req !== null && req !== this.sent?.req) return;
    const figure = this.sent?.figure;
    this.sent = null;
    const overtaken = this.waiting !== null && this.waiting.figure !== figure;
    if (!overtaken) deliver();
    this.send();
  }

  private send(): void {
    if (!this.ready || this.sent !== null || this.waiting === null) return;
    this.sent = this.waiting;
    this.waiting = null;
    this.socket?.send(JSON.stringify(this.sent));
  }
}
