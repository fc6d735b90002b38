// ADMM on a slice of one layer, computed in the reader's browser: the loop of
// helpers/paper/admm.py, and below it a picture of it. In JupyterLab and on Colab anywidget calls
// `render`; in the book a line of script does (helpers/explore/touch.py). Nothing else is loaded.
//
// A matrix is an array of rows, inputs × outputs as in the paper. Numbers have double precision.

export const ITERATIONS = 20;
const STEPS = 15; // of a gradual mask
const DAMPING = 0.1;

// The constraint on Z: a mask, one-shot (steps 0) or gradual, where n of every m neighbours along
// the input stay (0 of 1: those of the largest score, wherever they are), or so many values an
// output.
export const CONSTRAINTS = {
  once: { label: "one-shot mask (ADMM1)", n: 0, m: 1, steps: 0 },
  gradual: { label: "gradual mask (ADMM-Grad)", n: 0, m: 1, steps: STEPS },
  "2:4": { label: "2:4, one-shot mask", n: 2, m: 4, steps: 0 },
  "2:4 gradual": { label: "2:4, gradual mask", n: 2, m: 4, steps: STEPS },
  "8 values": { label: "grid of 8 values (3 bits)", values: 8 },
  "4 values": { label: "grid of 4 values (2 bits)", values: 4 },
};

// --- matrices ---------------------------------------------------------------------------------

const zip = (f, A, B) => A.map((row, i) => row.map((a, j) => f(a, B[i][j], i, j)));
const plus = (A, B) => zip((a, b) => a + b, A, B);
const minus = (A, B) => zip((a, b) => a - b, A, B);
const fill = (A, value) => A.map((row) => row.map(() => value));
const ridge = (A, r) => A.map((row, i) => row.map((a, j) => (i === j ? a + r : a)));
const sum = (A) => A.flat().reduce((total, a) => total + a, 0);
const dot = (A, B) => sum(zip((a, b) => a * b, A, B));

function times(A, B) {
  return A.map((row) => {
    const sums = B[0].map(() => 0);
    row.forEach((a, k) => B[k].forEach((b, j) => { sums[j] += a * b; }));
    return sums;
  });
}

// X with A X = B, for a symmetric positive definite A: elimination needs no pivoting
function solve(A, B) {
  const rows = A.map((row, i) => [...row, ...B[i]]);
  for (let k = 0; k < A.length; k++) {
    for (let i = 0; i < A.length; i++) {
      const factor = i === k ? 0 : rows[i][k] / rows[k][k];
      if (factor) for (let j = k; j < rows[i].length; j++) rows[i][j] -= factor * rows[k][j];
    }
  }
  return rows.map((row, i) => row.slice(A.length).map((x) => x / row[i]));
}

// --- the layer and the algorithm --------------------------------------------------------------

// Weight (outputs × inputs) and gram (inputs × inputs) from float32 numbers in base64.
export function unpack({ inputs, weight, gram }) {
  const rows = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const numbers = [...new Float32Array(bytes.buffer)];
    const row = (_, i) => numbers.slice(i * inputs, (i + 1) * inputs);
    return Array.from({ length: numbers.length / inputs }, row);
  };
  return { weight: rows(weight), gram: rows(gram) };
}

// Inputs of unit norm: n = √diag(gram), C = gram / (n nᵀ), W₀ = n · weight; so |W₀| is Wanda's
// score. G is C with damping, which pulls towards the dense weights.
export function scaled({ weight, gram }) {
  const n = gram.map((row, i) => Math.sqrt(row[i]) || 1);
  const C = gram.map((row, i) => row.map((g, j) => g / (n[i] * n[j])));
  const W0 = n.map((norm, i) => weight.map((output) => norm * output[i]));
  const mean = sum(C.map((row, i) => row[i])) / C.length;
  return { n, C, G: ridge(C, DAMPING * mean), W0, total: dot(W0, times(C, W0)) };
}

// ‖XW₀ − XZ‖² / ‖XW₀‖²
export function relativeError({ C, W0, total }, Z) {
  const change = minus(W0, Z);
  return dot(change, times(C, change)) / total;
}

// All but a share of the weights stay, those of the largest score; of equal ones the earlier.
function select(score, sparsity, { n, m }) {
  const keep = fill(score, false);
  const rest = [];
  for (let j = 0; j < score[0].length; j++) {
    for (let i = 0; i < score.length; i += m) {
      const group = Array.from({ length: m }, (_, k) => [score[i + k][j], i + k, j]);
      group.sort((a, b) => b[0] - a[0]);
      for (const [, row] of group.slice(0, n)) keep[row][j] = true; // the top n of each group stay
      rest.push(...group.slice(n));
    }
  }
  const weights = score.flat().length;
  const zeros = Math.round(sparsity * weights);
  rest.sort((a, b) => b[0] - a[0]);
  for (const [, i, j] of rest.slice(0, rest.length - zeros)) keep[i][j] = true;
  return keep;
}

// The weights that stay in iteration t: chosen once, or again in each step of a gradual mask.
function choose(T, t, keep, { constraint, sparsity }) {
  const { n, m, steps, values } = CONSTRAINTS[constraint];
  if (values || t > Math.max(steps, 1)) return keep;
  const goal = n ? 1 - n / m : sparsity;
  const now = steps ? goal - goal * (1 - t / steps) ** 3 : goal; // fast at first, then slower
  return select(T.map((row) => row.map(Math.abs)), now, { n, m });
}

// Z = the nearest matrix to T that meets the constraint.
function project(T, keep, { constraint }, { n, W0 }) {
  const { values } = CONSTRAINTS[constraint];
  if (!values) return zip((x, kept) => (kept ? x : 0), T, keep);
  // evenly spaced, for each output from the smallest of its weights w = W₀ / n to the largest
  const grids = W0[0].map((_, j) => {
    const w = W0.map((row, i) => row[j] / n[i]);
    const low = Math.min(...w);
    return { low, step: (Math.max(...w) - low) / (values - 1) };
  });
  return T.map((row, i) => row.map((x, j) => {
    const { low, step } = grids[j];
    const level = Math.round((x / n[i] - low) / step);
    return n[i] * (low + step * Math.min(values - 1, Math.max(0, level)));
  }));
}

// The loop. Returns its state after each iteration, and at 0 before the first.
export function admm(layer, settings) {
  const { G, W0 } = layer;
  const { rho, withU } = settings;
  const inverse = solve(ridge(G, rho), ridge(fill(G, 0), 1)); // (G + ρI)⁻¹, once for all
  const target = times(G, W0);
  let W = W0;
  let U = fill(W0, 0);
  let keep = fill(W0, true);
  const states = [];
  const store = (mask) => {
    const Z = project(plus(W, U), mask, settings, layer); // the answer, if the loop ends here
    states.push({ W, Z, U, keep: mask, error: relativeError(layer, Z) });
  };
  store(CONSTRAINTS[settings.constraint].steps ? keep : choose(W, 1, keep, settings));
  for (let t = 1; t <= ITERATIONS; t++) {
    keep = choose(plus(W, U), t, keep, settings);
    const Z = project(plus(W, U), keep, settings, layer); // Z step: meet the constraint
    if (withU) U = plus(U, minus(W, Z)); // U step: add up what was cut
    // W step: fit the outputs, near Z − U. W = (G + ρI)⁻¹ (G W₀ + ρ (Z − U))
    W = times(inverse, zip((g, d) => g + rho * d, target, minus(Z, U)));
    store(keep);
  }
  return states;
}

// The optimum on a mask, by least squares for each output j on its kept inputs S:
// G[S,S] z = (G W₀)[S,j]. This is what ADMM converges to.
export function optimum({ G, W0 }, keep) {
  const target = times(G, W0);
  const Z = fill(W0, 0);
  W0[0].forEach((_, j) => {
    const S = G.map((_, i) => i).filter((i) => keep[i][j]);
    const z = solve(S.map((i) => S.map((k) => G[i][k])), S.map((i) => [target[i][j]]));
    S.forEach((i, k) => { Z[i][j] = z[k][0]; });
  });
  return Z;
}

// --- the page ---------------------------------------------------------------------------------

const [BLUE, ORANGE, GREEN, GREY] = ["45 125 200", "217 108 30", "0 158 115", "125 133 144"];
const PANELS = {
  W: "fits the outputs", Z: "meets the constraint", U: "sum of W − Z", mask: "",
};
const slider = (name, words, attributes) =>
  `<label>${words} <input name="${name}" type="range" ${attributes}><output></output></label>`;
const figure = (caption, inner) => `<figure><figcaption>${caption}</figcaption>${inner}</figure>`;
const CHART = figure("", '<svg viewBox="0 0 330 166" role="img"></svg>');
const MARKUP = `
<div class="line"><label>constraint <select name="constraint">${Object.entries(CONSTRAINTS).map(
  ([key, { label }]) => `<option value="${key}">${label}</option>`).join("")}</select></label>
  <label><input name="withU" type="checkbox" checked> U step</label>
  <button type="button">Reset</button></div>
<div class="line">${slider("sparsity", "sparsity", 'min="0.05" max="0.95" step="0.05" value="0.6"')}
  ${slider("rho", "ρ", 'min="-2" max="2" step="0.25" value="0"')}</div>
<div class="line"><button type="button" aria-label="play">▶</button>
  ${slider("t", "iteration", `min="0" max="${ITERATIONS}" value="0"`)}</div>
<p class="seen" aria-live="polite"></p>
<div class="views"><div><div class="panels">${Object.entries(PANELS).map(([name, role]) =>
  figure(`<b>${name}</b><span>${role}</span>`, `<div tabindex="0" role="group" aria-label="${name}:
  the arrow keys choose a weight"><canvas></canvas><i></i></div>`)).join("")}</div>
<p class="legend"></p></div>
<div class="charts">${CHART}<p class="legend"></p>${CHART}</div></div>
<p class="about"></p>`;

// What the colours of the pictures and the lines of the error mean, as HTML.
function legends({ values, steps }, before) {
  const item = (style, words) => `<span><s style="${style}"></s> ${words}</span>`;
  const colour = (rgb, words) => item(`background: rgb(${rgb})`, words);
  const line = (style, words) => item(`border: 0 ${style}; border-top-width: 2px`, words);
  const fourth = values
    ? [colour(GREY, "the value that plain rounding gives"), colour(BLUE, "another value")]
    : [colour(GREY, "stays"), colour(`${GREY} / 0`, "pruned")];
  if (steps) {
    fourth.push(colour(BLUE, "stays, but the one-shot mask prunes it"));
    fourth.push(colour(GREEN, "pruned, but the one-shot mask keeps it"));
  }
  const lines = values ? [] : [line("dotted", "optimum: least squares on the last mask")];
  if (before) lines.push(line("dashed #8c8c8c", "previous: the error before your last change"));
  return [`<b>W, Z, U</b> ${colour(BLUE, "above zero")}${colour(ORANGE, "below zero")}
    stronger colour: larger value (U has a scale of its own)<br>
    <b>${values ? "rounding" : "mask"}</b> ${fourth.join("")}`, lines.join("")];
}

const percent = (x) => `${(100 * x).toPrecision(x < 0.01 ? 2 : 3)} %`;
const short = (x) => String(Number(x.toFixed(3))).replace("-", "−");
const largest = (M) => Math.max(1e-9, ...M.flat().map(Math.abs));

// The next number above x with one digit, or half of one more.
function above(x) {
  const unit = 10 ** Math.floor(Math.log10(x)) / 2;
  return unit * Math.ceil(x / unit);
}

// A pixel for each entry, which CSS enlarges, and a frame around the chosen one.
function paint(box, [i, j], M, colour) {
  const [canvas, frame] = box.children;
  const [height, width] = [M.length, M[0].length];
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  M.forEach((row, y) => row.forEach((value, x) => {
    pen.fillStyle = `rgb(${colour(value, y, x)})`;
    pen.fillRect(x, y, 1, 1);
  }));
  const [left, top] = [(100 * j) / width, (100 * i) / height];
  frame.style = `left:${left}%; top:${top}%; width:${100 / width}%; height:${100 / height}%`;
}

// Lines over the iterations, named at their right ends, with a mark at t; faint after t.
function chart(place, words, lines, t, ticks, format) {
  const [low, high] = [ticks[0], ticks.at(-1)];
  const x = (i) => 46 + (206 * i) / ITERATIONS;
  const y = (value) => 142 - (124 * (value - low)) / (high - low);
  const parts = ticks.map((v) => `<path class="grid" d="M46 ${y(v)}H252"/>
    <text x="40" y="${y(v) + 4}" text-anchor="end">${format(v)}</text>`);
  for (let i = 0; i <= ITERATIONS; i += 5) {
    parts.push(`<text x="${x(i)}" y="160" text-anchor="middle">${i}</text>`);
  }
  parts.push(`<path class="grid" d="M${x(t)} 18V142"/>`);
  const path = (values) =>
    values.map((v, i) => `${i ? "L" : "M"}${x(i)} ${y(v).toFixed(1)}`).join("");
  let free = 160; // names do not overlap: from the lowest up, each above the one before
  for (const [name, look, values] of lines.sort((a, b) => a[2].at(-1) - b[2].at(-1))) {
    free = Math.min(free - 14, y(values.at(-1)) + 4);
    parts.push(`<path class="${look} ahead" d="${path(values)}"/>
      <path class="${look}" d="${path(values.slice(0, t + 1))}"/>
      <circle class="${look}" cx="${x(t)}" cy="${y(values[t])}" r="4"/>
      <text class="${look}" x="260" y="${free}">${name}</text>`);
  }
  const [caption, svg] = place.children;
  caption.textContent = words;
  svg.ariaLabel = words;
  svg.innerHTML = parts.join("");
}

// What is seen at iteration t, in a few sentences. once: the one-shot mask, or where Z has the
// value that rounding gives.
function sentence({ states, best, kind, withU }, t, once) {
  const { W, Z, keep, error } = states[t];
  const past = states[Math.max(0, t - 1)].keep;
  const count = (test) =>
    sum(zip((kept, before, i, j) => Number(test(kept, before, once[i][j])), keep, past));
  const zeros = percent(count((kept) => !kept) / count(() => true));
  const allowed = kind.values ? `${kind.values} values an output` : `${zeros} zeros`;
  const text = [`Iteration ${t}: error ${percent(error)}, ${allowed}.`];
  if (t === 0) {
    const start = kind.steps ? "Z is still W" : "Z is its projection";
    return `${text} W is dense, ${start}, U is 0. Drag the iteration to the right, or press ▶.`;
  }
  const gap = Math.sqrt(dot(minus(W, Z), minus(W, Z)) / dot(states[0].W, states[0].W));
  const apart = withU ? "" : ": without the U step they stay apart";
  text.push(`W and Z differ by ${percent(gap)}${apart}.`);
  const start = percent(states[0].error);
  const other = count((kept, _, there) => kept && !there); // blue
  if (kind.values) text.push(`Plain rounding: ${start}. Another value: ${other} weights (blue).`);
  else if (kind.steps) {
    const pruned = count((kept, before) => before && !kept);
    const back = count((kept, before) => kept && !before);
    text.push(`This iteration pruned ${pruned} weights and brought back ${back}.`);
    text.push(`Not in the one-shot mask: ${other} (blue).`);
  } else text.push(`Optimum on this mask: ${percent(best)}; without an update: ${start}.`);
  return text.join(" ");
}

export function render({ model, el }) {
  const data = model.get("data");
  const layer = scaled(unpack(data));
  const { W0 } = layer;
  const [inputs, outputs] = [W0.length, W0[0].length];
  const root = document.createElement("form");
  root.className = "touch";
  root.innerHTML = MARKUP;
  el.replaceChildren(root);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const controls = Object.fromEntries(all("[name]").map((control) => [control.name, control]));
  const [boxes, charts, outputsOf] = [all(".panels div"), all(".charts figure"), all("output")];
  const legendsOf = all(".legend");
  const [reset, play] = all("button");
  // JupyterLab leaves the arrow keys to what has the focus here
  for (const each of all("[name], button, [tabindex]")) each.dataset.lmSuppressShortcuts = "true";
  all(".about")[0].textContent = data.title;
  let seen; // for the present controls: settings, kind of constraint, states, errors, best, once
  let last; // the errors at the settings that were let go of last, and at those
  let before; // that they are compared with
  let rhos; // by constraint: where the reader has put its slider of ρ
  let at; // the chosen weight: its input and output
  let timer;

  function solveAgain() {
    const settings = {
      constraint: controls.constraint.value,
      sparsity: Number(controls.sparsity.value),
      rho: 10 ** controls.rho.value,
      withU: controls.withU.checked,
    };
    const kind = CONSTRAINTS[settings.constraint];
    const states = admm(layer, settings);
    const best = kind.values ? null : relativeError(layer, optimum(layer, states.at(-1).keep));
    const once = choose(W0, 1, null, { ...settings, constraint: kind.n ? "2:4" : "once" });
    seen = { ...settings, kind, states, errors: states.map((state) => state.error), best, once };
  }

  function draw() {
    const t = Number(controls.t.value);
    const { kind, states, errors, best } = seen;
    const now = states[t];
    controls.sparsity.disabled = Boolean(kind.n || kind.values);
    const zeros = controls.sparsity.disabled ? "–" : `${Math.round(100 * seen.sparsity)} %`;
    const shown = [zeros, Number(seen.rho.toPrecision(2)), t];
    shown.forEach((text, k) => { outputsOf[k].value = text; });
    const once = kind.values ? zip((z, start) => z === start, now.Z, states[0].Z) : seen.once;
    all(".seen")[0].textContent = sentence(seen, t, once);
    legends(kind, before).forEach((html, k) => { legendsOf[k].innerHTML = html; });
    const [name, role] = all(".panels figure:last-child figcaption > *");
    name.textContent = kind.values ? "rounding" : "mask";
    role.textContent = kind.values ? "what Z changes" : "what stays";
    play.textContent = timer ? "❚❚" : "▶";
    play.className = t === 0 ? "start" : "";

    const shade = (M) => {
      const full = largest(M);
      return (x) => `${x < 0 ? ORANGE : BLUE} / ${Math.min(1, Math.sqrt(Math.abs(x) / full))}`;
    };
    const mask = (kept, i, j) => (kept ? `${once[i][j] ? GREY : BLUE} / 1`
      : `${GREEN} / ${once[i][j] ? 1 : 0}`);
    paint(boxes[0], at, now.W, shade(W0));
    paint(boxes[1], at, now.Z, shade(W0));
    paint(boxes[2], at, now.U, shade(states.at(-1).U)); // its own scale, since ρ changes it
    paint(boxes[3], at, now.keep, mask);

    const lines = [["error", "error", errors]];
    if (best) lines.push(["optimum", "best", errors.map(() => best)]);
    if (before) lines.push(["previous", "before", before]);
    const high = above(largest(lines.map((line) => line[2])));
    const tick = (x) => `${Number((100 * x).toPrecision(3))} %`;
    chart(charts[0], "relative error of Z by iteration", lines, t, [0, high / 2, high], tick);
    const [i, j] = at;
    const path = (name) => [name, name, states.map((state) => state[name][i][j])];
    const three = [path("W"), path("Z"), path("U")];
    const values = three.flatMap((line) => line[2]);
    const most = above(largest([values]));
    const ticks = [-most, 0, most].filter((x) => !x || values.some((v) => v / x > 0.05));
    const words = ["W", "Z", "U"].map((name) => `${name} ${short(now[name][i][j])}`).join(", ");
    chart(charts[1], `input ${i} → output ${j}: ${words}`, three, t, ticks, short);
  }

  function pick(i, j) {
    at = [Math.min(inputs - 1, Math.max(0, i)), Math.min(outputs - 1, Math.max(0, j))];
    draw();
  }

  function stop() {
    clearInterval(timer);
    timer = undefined;
  }

  function step() {
    controls.t.value = Number(controls.t.value) + 1;
    if (Number(controls.t.value) === ITERATIONS) stop();
    draw();
  }

  root.addEventListener("input", ({ target }) => {
    if (target === controls.t) stop();
    else {
      const { value } = controls.constraint;
      if (target === controls.rho) rhos[value] = target.value;
      if (target === controls.constraint) controls.rho.value = rhos[value] ?? 0; // ρ = 1
      before = last;
      solveAgain();
    }
    draw();
  });
  root.addEventListener("change", () => { last = seen.errors; });
  play.addEventListener("click", () => {
    if (timer) stop();
    else {
      if (Number(controls.t.value) === ITERATIONS) controls.t.value = 0;
      timer = setInterval(step, 400);
    }
    draw();
  });
  for (const box of boxes) {
    const point = ({ buttons, clientX, clientY }) => {
      const { left, top, width, height } = box.getBoundingClientRect();
      const [i, j] = [((clientY - top) / height) * inputs, ((clientX - left) / width) * outputs];
      if (buttons) pick(Math.floor(i), Math.floor(j));
    };
    box.addEventListener("pointerdown", point);
    box.addEventListener("pointermove", point);
    box.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (!(event.key in move)) return;
      event.preventDefault();
      pick(at[0] + move[event.key][0], at[1] + move[event.key][1]);
    });
  }

  function begin() {
    stop();
    root.reset(); // the controls
    rhos = {};
    before = undefined;
    solveAgain();
    last = seen.errors;
    // the weight that the mask costs most: where U has grown most
    const U = seen.states.at(-1).U.flat().map(Math.abs);
    const place = U.indexOf(Math.max(...U));
    pick(Math.floor(place / outputs), place % outputs);
  }

  reset.addEventListener("click", begin);
  root.addEventListener("submit", (event) => event.preventDefault()); // by the Enter key
  begin();
  return stop;
}

export default { render };
