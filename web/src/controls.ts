/** Controls from their specs: a label, an input, help, and the error that concerns it. */

import type { ChoiceControl, Control, FigureSpec, ManyControl, Params, RangeControl, TextControl, Value } from "./contract";
import { h, settled } from "./dom";
import { formatted } from "./format";
import { nearest } from "./frames";
import { spoken } from "./mathtext";
import { inline } from "./prose";

type Changed = (value: Value) => void;
interface Field {
  element: HTMLElement;
  /** What an error's text is tied to. */
  inputs: HTMLElement[];
  set(value: Value): void;
}
/** Positions of a slider and the values at them. */
interface Track {
  low: number;
  high: number;
  step: number;
  value(position: number): number;
  position(value: number): number;
}
export type Grid = (control: string) => unknown[] | null;

const POSITIONS = 240;
let fields = 0;

export class Controls {
  readonly element: HTMLFormElement;
  private readonly rows = new Map<string, { row: HTMLElement; label: string; error: HTMLElement; field: Field }>();

  constructor(
    private readonly figure: FigureSpec,
    private params: Params,
    grid: Grid,
    private readonly changed: (params: Params) => void,
  ) {
    this.element = h("form", { class: "controls", "aria-label": "Parameters" });
    this.element.addEventListener("submit", (event) => event.preventDefault());
    for (const control of figure.controls) this.element.append(this.row(control, grid(control.name)));
    this.conditions();
  }

  /** Shows an error beside its control; false if none is seen. */
  fail(name: string | null | undefined, message: string): boolean {
    for (const [key, { label, error, field }] of this.rows) {
      error.textContent = key === name ? message.replace(label, spoken(label)) : "";
      error.hidden = key !== name;
      for (const input of field.inputs) input.setAttribute("aria-invalid", String(key === name));
    }
    return this.rows.get(name ?? "")?.row.hidden === false;
  }

  private row(control: Control, grid: unknown[] | null): HTMLElement {
    const id = `control-${++fields}`;
    const field = made(control, id, grid, (value) => {
      this.params = { ...this.params, [control.name]: value };
      this.conditions();
      this.changed(this.params);
    });
    field.set(this.params[control.name] as Value);
    const error = h("p", { class: "error", id: `${id}-error`, role: "alert", hidden: true });
    const help = control.help ? [h("p", { class: "help", id: `${id}-help` }, ...inline(control.help))] : [];
    const about = `${help.length > 0 ? `${id}-help ` : ""}${id}-error`;
    for (const input of field.inputs) input.setAttribute("aria-describedby", about);
    const row = h("div", { class: `control ${control.kind}`, "data-control": control.name }, field.element, ...help, error);
    this.rows.set(control.name, { row, label: control.label, error, field });
    return row;
  }

  private conditions(): void {
    for (const control of this.figure.controls) {
      const row = this.rows.get(control.name)?.row;
      const met = Object.entries(control.when ?? {}).every(([name, values]) => values.includes(this.params[name] as Value));
      if (row) row.hidden = !met;
    }
  }
}

function made(control: Control, id: string, grid: unknown[] | null, changed: Changed): Field {
  if (control.kind === "range") return range(control, id, grid as number[] | null, changed);
  if (control.kind === "choice") return choice(control, id, grid, changed);
  if (control.kind === "many") return many(control, id, grid, changed);
  if (control.kind === "switch") return toggle(control.label, id, grid, changed);
  return text(control, id, grid, changed);
}

function caption(control: { label: string }, id: string): HTMLLabelElement {
  return h("label", { for: id }, ...inline(control.label));
}

/** Neither a list of one value nor an empty one leaves a choice. */
function fixed(grid: unknown[] | null): boolean {
  return grid !== null && grid.length < 2;
}

function range(control: RangeControl, id: string, grid: number[] | null, changed: Changed): Field {
  const along = track(control, grid);
  const disabled = fixed(grid);
  const slider = h("input", { type: "range", id, min: along.low, max: along.high, step: along.step, disabled });
  const number = h("input", {
    type: "number", min: control.low, max: control.high, step: control.integer ? 1 : "any", disabled,
    "aria-label": `${spoken(control.label)}, as a number`, inputmode: control.integer ? "numeric" : "decimal",
  });
  const unit = control.unit ? [h("span", { class: "unit" }, ...inline(control.unit))] : [];
  const show = (value: number) => {
    slider.value = String(along.position(value));
    slider.style.setProperty("--share", String((Number(slider.value) - along.low) / (along.high - along.low || 1)));
    slider.setAttribute("aria-valuetext", `${formatted(value, ".4g")} ${control.unit ?? ""}`.trim());
  };
  const typed = (value: number) => {
    show(value);
    changed(value);
  };
  slider.addEventListener("input", () => {
    number.value = String(along.value(Number(slider.value)));
    typed(Number(number.value));
  });
  number.addEventListener("input", () => {
    if (number.value !== "") typed(grid ? (grid[nearest(grid, Number(number.value))] ?? control.default) : Number(number.value));
  });
  // the number of the frame that is shown
  if (grid) number.addEventListener("change", () => (number.value = String(along.value(Number(slider.value)))));
  const element = h("div", { class: "field" }, caption(control, id), h("span", { class: "exact" }, number, ...unit), slider);
  const set = (value: Value) => {
    number.value = String(value);
    show(Number(value));
  };
  return { element, inputs: [slider, number], set };
}

function track(control: RangeControl, grid: number[] | null): Track {
  const { low, high, step, log, integer } = control;
  if (grid && grid.length > 1) {
    return { low: 0, high: grid.length - 1, step: 1, value: (at) => grid[at] ?? control.default, position: (value) => nearest(grid, value) };
  }
  if (!log) return { low, high, step, value: (at) => at, position: (value) => value };
  const ratio = Math.log(high / low);
  const rounded = (value: number) => Math.min(high, Math.max(low, integer ? Math.round(value) : Number(value.toPrecision(3))));
  return {
    low: 0, high: POSITIONS, step: 1,
    value: (at) => rounded(low * Math.exp((ratio * at) / POSITIONS)),
    position: (value) => (POSITIONS * Math.log(value / low)) / ratio,
  };
}

function offers(grid: unknown[] | null, value: unknown, standard: unknown): boolean {
  if (grid === null) return true;
  return grid.length === 0 ? value === standard : grid.includes(value);
}

function choice(control: ChoiceControl, id: string, grid: unknown[] | null, changed: Changed): Field {
  const options = control.options.map(([value, label]) =>
    h("option", { value, disabled: !offers(grid, value, control.default) }, spoken(label)));
  const select = h("select", { id, disabled: fixed(grid) }, ...options);
  select.addEventListener("change", () => changed(select.value));
  const element = h("div", { class: "field" }, caption(control, id), select);
  return { element, inputs: [select], set: (value) => (select.value = String(value)) };
}

function many(control: ManyControl, id: string, grid: unknown[] | null, changed: Changed): Field {
  const boxes = control.options.map(([value], i) => h("input", { type: "checkbox", id: `${id}-${i}`, value, disabled: fixed(grid) }));
  const chips = control.options.map(([, label], i) => h("label", { class: "chip" }, boxes[i] as Node, h("span", {}, ...inline(label))));
  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);
  const limit = () => {
    const full = chosen().length >= control.most;
    for (const box of boxes) box.disabled = fixed(grid) || (full && !box.checked);
  };
  for (const box of boxes) {
    box.addEventListener("change", () => {
      limit();
      changed(chosen());
    });
  }
  const set = (value: Value) => {
    for (const box of boxes) box.checked = (value as string[]).includes(box.value);
    limit();
  };
  const group = h("fieldset", { class: "field" }, h("legend", {}, ...inline(control.label)), h("div", { class: "chips" }, ...chips));
  return { element: group, inputs: [group], set };
}

function toggle(label: string, id: string, grid: unknown[] | null, changed: Changed): Field {
  const box = h("input", { type: "checkbox", role: "switch", id, disabled: fixed(grid) });
  box.addEventListener("change", () => changed(box.checked));
  const element = h("div", { class: "field" }, box, caption({ label }, id));
  return { element, inputs: [box], set: (value) => (box.checked = Boolean(value)) };
}

function text(control: TextControl, id: string, grid: unknown[] | null, changed: Changed): Field {
  const input = h("input", {
    type: "text", id, maxlength: control.longest, placeholder: control.hint, spellcheck: "false",
    autocomplete: "off", autocapitalize: "off", disabled: fixed(grid),
  });
  input.addEventListener("input", settled(() => changed(input.value), 250));
  const element = h("div", { class: "field" }, caption(control, id), input);
  return { element, inputs: [input], set: (value) => (input.value = String(value)) };
}
