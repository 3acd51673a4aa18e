/** The page: figures in a list, the one shown, its controls, its numbers, and what can be taken home. */

import type { Failure, FigureSpec, Panel, Params, Reply, View } from "./contract";
import { Controls } from "./controls";
import { button, h, settled } from "./dom";
import { PanelView } from "./draw/index";
import { shown } from "./format";
import { snapped } from "./frames";
import { address, asked, defaults, restored } from "./link";
import { spoken } from "./mathtext";
import { inline, prose } from "./prose";
import { copy, csvText, download, pngBlob, svgText, type Picture } from "./save";
import type { Listener, Status, Transport } from "./transport";

const STATUS: Record<Status["state"], string> = {
  connecting: "Connecting …",
  starting: "Starting the computation engine …",
  ready: "",
  lost: "The connection to twosides is lost.",
  refused: "This page has no key to the server. Open the address that “twosides explore” printed, with all that follows the #.",
};
const PATIENCE = 250;

export class Page implements Listener {
  private figures: FigureSpec[] = [];
  private figure: FigureSpec | null = null;
  private readonly params = new Map<string, Params>();
  private controls: Controls | null = null;
  private view: View | null = null;
  private panels: PanelView[] = [];
  private transport: Transport | null = null;
  private slow = 0;

  private readonly at = {
    nav: part("figures"), status: part("status"), title: part("title"), lead: part("lead"), text: part("text"),
    panels: part("panels"), notes: part("notes"), controls: part("controls"), numbers: part("numbers"),
    aloud: part("aloud"), time: part("time"), take: part("take"), code: part("code"), turn: part("turn"), version: part("version"),
  };
  private readonly said = settled((text: string) => (this.at.aloud.textContent = text), 600);
  private readonly linked = settled(() => this.remember("replaceState"), 200);

  constructor(private readonly badge: (version: string) => string) {
    window.addEventListener("popstate", () => this.follow(asked()));
    this.at.take.append(...this.buttons());
  }

  connect(transport: Transport): void {
    this.transport = transport;
    if (this.figure) this.open(this.figure.name, this.params.get(this.figure.name) as Params);
  }

  // ------------------------------------------------------------ what the transport says

  hello(version: string, figures: FigureSpec[]): void {
    this.at.version.textContent = this.badge(version);
    if (this.figures.length > 0) return; // connected again: what is shown stays
    this.figures = figures;
    for (const { name, title } of figures) this.at.nav.append(h("li", {}, this.linkTo(name, title)));
    this.follow(asked());
  }

  status(status: Status): void {
    const again = status.state === "lost" ? ` Trying again in ${status.seconds} s.` : "";
    this.at.status.textContent = STATUS[status.state] + again;
    this.at.status.hidden = status.state === "ready";
    document.body.dataset["state"] = status.state;
    if (status.state === "lost" || status.state === "refused") this.waiting(false);
  }

  reply({ figure, ms, view }: Reply): void {
    if (figure !== this.figure?.name) return;
    this.waiting(false);
    this.controls?.fail(null, "");
    this.at.status.hidden = true;
    this.view = view;
    this.show(view);
    this.at.time.textContent = ms >= 1 ? `computed in ${Math.round(ms)} ms` : "computed in less than 1 ms";
    this.at.panels.dataset["shown"] = figure;
  }

  failure({ message, control }: Failure): void {
    this.waiting(false);
    const beside = this.controls?.fail(control, message) ?? false;
    this.at.status.textContent = beside ? "" : message;
    this.at.status.hidden = beside;
  }

  // ------------------------------------------------------------ what the visitor does

  private follow(address: URLSearchParams): void {
    const wanted = this.figures.find(({ name }) => name === address.get("figure"));
    const figure = wanted ?? this.figures[0];
    if (!figure) return;
    this.open(figure.name, wanted ? restored(figure, address) : defaults(figure));
    if (!wanted && address.has("figure")) {
      this.at.status.textContent = `There is no figure named “${address.get("figure")}”; this is the first.`;
      this.at.status.hidden = false;
    }
  }

  private turnTo(name: string): void {
    const figure = this.figures.find((one) => one.name === name) as FigureSpec;
    this.remember("replaceState"); // what was moved a moment ago belongs to the figure that is left
    this.open(name, this.params.get(name) ?? defaults(figure));
    this.remember("pushState");
    window.scrollTo({ top: 0 });
    this.at.title.focus({ preventScroll: true });
  }

  private open(name: string, params: Params): void {
    const figure = this.figures.find((one) => one.name === name) as FigureSpec;
    if (figure !== this.figure) this.clear(figure);
    this.figure = figure;
    const grid = (control: string) => this.transport?.grid(name, control) ?? null;
    const possible = snapped(params, grid);
    const controls: Controls = new Controls(figure, possible, grid, (now) => {
      if (this.controls === controls) this.ask(now); // not what was typed into a figure that is left
    });
    this.controls = controls;
    this.at.controls.replaceChildren(this.controls.element);
    this.ask(possible, false);
  }

  /** A figure's own words at once; its drawings when they come. */
  private clear(figure: FigureSpec): void {
    document.title = `${spoken(figure.title)} · twosides`;
    this.at.title.replaceChildren(...inline(figure.title));
    const blocks = prose(figure.text);
    const formulas = blocks.findIndex((block, i) => i > 0 && block.className !== "display");
    const lead = formulas < 0 ? blocks.length : formulas; // a paragraph and the formulas that it leads to
    this.at.lead.replaceChildren(...blocks.slice(0, lead));
    this.at.text.replaceChildren(...blocks.slice(lead));
    this.view = null;
    this.panels = [];
    delete this.at.panels.dataset["shown"];
    this.at.panels.replaceChildren(h("div", { class: "skeleton" }));
    for (const empty of [this.at.numbers, this.at.notes, this.at.code]) empty.replaceChildren();
    this.at.time.textContent = "";
    this.turns(figure);
  }

  private turns(figure: FigureSpec): void {
    for (const link of this.at.nav.querySelectorAll("a")) {
      const here = link.dataset["figure"] === figure.name;
      if (!here) link.removeAttribute("aria-current");
      else link.setAttribute("aria-current", "page");
      if (here && this.at.nav.scrollWidth > this.at.nav.clientWidth) this.at.nav.scrollLeft = link.offsetLeft - 16;
    }
    const place = this.figures.indexOf(figure);
    const [before, after] = [this.figures[place - 1], this.figures[place + 1]];
    this.at.turn.replaceChildren(
      ...(before ? [this.linkTo(before.name, `← ${before.title}`)] : []),
      ...(after ? [this.linkTo(after.name, `${after.title} →`, "next")] : []),
    );
  }

  private linkTo(name: string, text: string, cls?: string): HTMLAnchorElement {
    const link = h("a", { href: address(name, {}), "data-figure": name, class: cls }, ...inline(text));
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.turnTo(name);
    });
    return link;
  }

  private ask(params: Params, remembered = true): void {
    if (!this.figure) return;
    this.params.set(this.figure.name, params);
    if (remembered) this.linked();
    this.waiting(true);
    this.transport?.ask(this.figure.name, params);
  }

  private remember(how: "pushState" | "replaceState"): void {
    if (!this.figure) return;
    try {
      history[how](null, "", address(this.figure.name, this.params.get(this.figure.name) as Params));
    } catch {
      // a browser that fixes the address of a page opened from a file: the permalink button still works
    }
  }

  private waiting(on: boolean): void {
    clearTimeout(this.slow);
    this.at.panels.setAttribute("aria-busy", String(on));
    if (!on) delete document.body.dataset["busy"];
    else this.slow = window.setTimeout(() => (document.body.dataset["busy"] = ""), PATIENCE);
  }

  // ------------------------------------------------------------ what is shown

  private show(view: View): void {
    if (this.panels.length !== view.panels.length) {
      this.panels = view.panels.map(() => new PanelView());
      this.at.panels.replaceChildren(...this.panels.map(({ element }) => element));
    }
    this.at.panels.dataset["count"] = String(view.panels.length);
    const each = (action: (one: PanelView, panel: Panel) => void) =>
      view.panels.forEach((panel, i) => action(this.panels[i] as PanelView, panel));
    // how wide one is depends on all
    each((one, panel) => one.element.classList.toggle("wide", panel.kind === "table" || panel.kind === "images"));
    each((one, panel) => one.show(panel));
    this.numbers(view);
    this.at.notes.replaceChildren(...view.notes.flatMap((note) => prose(note)));
    this.code(view);
  }

  redraw(): void {
    for (const panel of this.panels) panel.redraw();
  }

  private numbers({ numbers }: View): void {
    const entries = numbers.map((number) =>
      h("div", {}, h("dt", {}, ...inline(number.label)),
        h("dd", {}, h("data", { value: String(number.value), "data-number": number.name }, shown(number)))));
    this.at.numbers.replaceChildren(...entries);
    this.at.numbers.hidden = entries.length === 0;
    this.said(numbers.map((number) => `${spoken(number.label)}: ${shown(number)}`).join("; "));
  }

  private code({ python, cli }: View): void {
    const blocks = [["Python", python], ["Command line", cli]].filter(([, text]) => text);
    this.at.code.replaceChildren(...blocks.flatMap(([name, text]) => [
      h("h4", {}, name ?? ""),
      h("pre", { tabindex: 0, role: "group", "aria-label": name }, h("code", {}, text ?? "")),
    ]));
    (document.getElementById("copy-cli") as HTMLElement).hidden = !cli;
    const drawn = this.pictures().length > 0;
    for (const id of ["save-png", "save-svg"]) (document.getElementById(id) as HTMLElement).hidden = !drawn;
  }

  // ------------------------------------------------------------ what can be taken home

  private pictures(): Picture[] {
    return this.panels.flatMap((panel) => panel.svg() ?? []);
  }

  private buttons(): HTMLElement[] {
    const copies = (id: string, label: string, text: () => string) => {
      const element = button(label, () => {
        void copy(text()).then(() => this.done(element, "Copied"), (reason: unknown) => this.done(element, String(reason)));
      }, { id });
      return element;
    };
    const saves = (id: string, label: string, made: () => Promise<Blob> | Blob) => {
      const name = () => `twosides-${this.figure?.name}.${id.slice(-3)}`;
      return button(label, () => void Promise.resolve(made()).then((blob) => download(name(), blob)), { id });
    };
    const svg = () => new Blob([svgText(this.pictures()).text], { type: "image/svg+xml" });
    const csv = () => new Blob([csvText(this.view?.panels ?? [])], { type: "text/csv" });
    return [
      copies("copy-python", "Copy Python", () => this.view?.python ?? ""),
      copies("copy-cli", "Copy command", () => this.view?.cli ?? ""),
      copies("permalink", "Copy link", () => this.figure ? address(this.figure.name, this.params.get(this.figure.name) ?? {}) : ""),
      saves("save-png", "PNG", () => pngBlob(this.pictures())),
      saves("save-svg", "SVG", svg),
      saves("save-csv", "CSV", csv),
      button("Reset", () => this.reset(), { id: "reset" }),
    ];
  }

  private reset(): void {
    if (!this.figure) return;
    this.params.delete(this.figure.name);
    this.open(this.figure.name, defaults(this.figure));
    this.linked();
  }

  private done(element: HTMLButtonElement, word: string): void {
    const label = element.dataset["label"] ?? element.textContent ?? "";
    element.dataset["label"] = label;
    element.textContent = word;
    this.at.aloud.textContent = word;
    setTimeout(() => (element.textContent = label), 1200);
  }
}

function part(id: string): HTMLElement {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}
