/** Panels: one drawing function for each kind that the contract knows. */

import type { Panel } from "../contract";
import { h } from "../dom";
import { inline } from "../prose";
import { heat } from "./heat";
import { images } from "./images";
import { plot } from "./plot";
import type { Drawing } from "./svg";
import { table } from "./table";

const KINDS: Record<Panel["kind"], (panel: Panel, width: number) => Drawing> = { plot, heat, images, table };

/** A panel with its title, its caption, and what the pointer is at. */
export class PanelView {
  readonly element = h("figure", { class: "panel" });
  private readonly stage = h("div", { class: "stage" });
  private readonly tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
  private readonly title = h("h3");
  private readonly caption = h("p", { class: "caption" });
  private drawing: Drawing | null = null;
  private panel: Panel | null = null;
  private width = 0; // that the drawing was made for

  constructor() {
    this.element.append(h("figcaption", {}, this.title), this.stage, this.caption);
    new ResizeObserver(() => {
      if (Math.floor(this.stage.clientWidth) !== this.width) this.redraw();
    }).observe(this.stage);
    this.stage.addEventListener("pointermove", (event) => this.point(event));
    this.stage.addEventListener("pointerleave", () => (this.tip.hidden = true));
  }

  show(panel: Panel): void {
    this.panel = panel;
    this.title.replaceChildren(...inline(panel.title));
    this.title.hidden = panel.title === "";
    this.caption.replaceChildren(...inline(panel.caption ?? ""));
    this.caption.hidden = !panel.caption;
    this.redraw();
  }

  redraw(): void {
    if (!this.panel) return;
    this.width = Math.floor(this.stage.clientWidth);
    if (this.width === 0) return;
    this.drawing = KINDS[this.panel.kind](this.panel, this.width);
    this.stage.replaceChildren(this.drawing.element, this.tip);
  }

  /** The drawing as SVG; a table has none. */
  svg(): { title: string; svg: SVGSVGElement } | null {
    const element = this.drawing?.element;
    return element instanceof SVGSVGElement ? { title: this.panel?.title ?? "", svg: element } : null;
  }

  private point(event: PointerEvent): void {
    const frame = this.stage.getBoundingClientRect();
    const target = this.drawing?.near?.(event.clientX - frame.left, event.clientY - frame.top) ?? null;
    this.tip.hidden = target === null;
    if (!target) return;
    this.tip.textContent = target.says;
    const half = this.tip.offsetWidth / 2;
    this.tip.style.left = `${Math.min(Math.max(target.x, half), frame.width - half)}px`;
    this.tip.style.top = `${target.y}px`;
  }
}
