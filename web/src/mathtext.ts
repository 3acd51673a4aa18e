/** Short labels inside drawings: $TeX$ of letters, Greek, indices and powers as runs of plain text. */

export interface Run {
  text: string;
  italic: boolean;
  /** 1 for a power, -1 for an index, 0 on the line. */
  shift: number;
}

const SYMBOLS: Record<string, string> = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", varepsilon: "ε", eta: "η", theta: "θ",
  kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", phi: "φ",
  varphi: "φ", chi: "χ", psi: "ψ", omega: "ω", Delta: "Δ", Lambda: "Λ", Sigma: "Σ", Gamma: "Γ",
  infty: "∞", partial: "∂", nabla: "∇", cdot: " · ", times: " × ", pm: " ± ", to: " → ", le: " ≤ ",
  leq: " ≤ ", ge: " ≥ ", geq: " ≥ ", approx: " ≈ ", in: " ∈ ", propto: " ∝ ", sim: " ∼ ", mid: " | ",
  int: "∫", sum: "∑", sqrt: "√", "|": "‖", lVert: "‖", rVert: "‖", vert: "|", quad: "  ", ",": " ",
  ";": " ", " ": " ", "!": "", "%": "%", "{": "{", "}": "}", ldots: "…", dots: "…", prime: "′", ell: "ℓ",
};
const ACCENTS: Record<string, string> = { hat: "\u0302", bar: "\u0304", tilde: "\u0303", dot: "\u0307", widehat: "\u0302" };
const UPRIGHT = new Set(["mathrm", "text", "operatorname", "textrm", "mathit", "mathbf", "mathcal", "left", "right"]);
const TOKEN = /\\[A-Za-z]+|\\.|[\^_{}]|\s+|./gu;

/** A label as runs; what stands outside $...$ is upright text. */
export function runs(label: string): Run[] {
  return label.split("$").flatMap((piece, i) => {
    if (i % 2 === 1) return new Parser(piece).parse();
    return piece === "" ? [] : [{ text: piece, italic: false, shift: 0 }];
  });
}

/** A label without its markup, for people who listen. */
export function spoken(label: string): string {
  return runs(label).map((run) => run.text).join("");
}

class Parser {
  private readonly tokens: string[];
  private at = 0;

  constructor(tex: string) {
    this.tokens = tex.match(TOKEN) ?? [];
  }

  parse(shift = 0, upright = false): Run[] {
    const out: Run[] = [];
    while (this.at < this.tokens.length && this.tokens[this.at] !== "}") out.push(...this.atom(shift, upright));
    this.at += 1;
    return out;
  }

  private atom(shift: number, upright: boolean): Run[] {
    const token = this.tokens[this.at++] ?? "";
    if (token === "{") return this.parse(shift, upright);
    if (token === "^") return this.atom(1, upright);
    if (token === "_") return this.atom(-1, upright);
    if (token.startsWith("\\")) return this.command(token.slice(1), shift, upright);
    if (/^\s+$/.test(token)) return upright ? [{ text: " ", italic: false, shift }] : [];
    const spaced = !upright && shift === 0 && "=<>+".includes(token) ? ` ${token} ` : token;
    const text = token === "-" && !upright ? "−" : token === "'" ? "′" : spaced;
    return [{ text, italic: !upright && /[A-Za-z]/.test(token), shift }];
  }

  private command(name: string, shift: number, upright: boolean): Run[] {
    if (UPRIGHT.has(name)) return name === "left" || name === "right" ? [] : this.atom(shift, true);
    const accent = ACCENTS[name];
    if (accent) return this.atom(shift, upright).map((run) => ({ ...run, text: run.text + accent }));
    if (name === "frac") {
      return [...this.atom(shift, upright), { text: "/", italic: false, shift }, ...this.atom(shift, upright)];
    }
    const symbol = SYMBOLS[name];
    if (symbol === undefined) return [{ text: name, italic: false, shift }]; // \log, \max, ...
    return [{ text: symbol, italic: /[α-ω]/.test(symbol), shift }];
  }
}
