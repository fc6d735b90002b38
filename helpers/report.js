"use strict";
// Buttons that sort tables and copy commands. Without this script the page says the same.
(() => {
  const live = document.createElement("p");
  live.className = "unseen";
  live.setAttribute("role", "status");
  document.body.append(live);
  const say = (text) => { live.textContent = ""; requestAnimationFrame(() => { live.textContent = text; }); };

  // ---- tables: a click sorts up, the next down, the third as it was
  const order = { none: "ascending", ascending: "descending", descending: "none" };

  const compare = (one, other, sign) => {
    const [a, b] = [one.dataset.key, other.dataset.key];
    if (a === "" || b === "") return (a === "") - (b === ""); // what is missing goes last
    const numbers = [a !== undefined, b !== undefined];
    if (numbers[0] && numbers[1]) return sign * (Number(a) - Number(b));
    if (numbers[0] !== numbers[1]) return numbers[1] - numbers[0]; // words after numbers
    return sign * one.textContent.localeCompare(other.textContent, "en", { numeric: true });
  };

  const makeSortable = (table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    if (original.length < 2) return;
    heads.forEach((head, column) => {
      const name = head.textContent.trim();
      if (!name) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const direction = order[head.getAttribute("aria-sort")];
        heads.forEach((other) => { if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none"); });
        head.setAttribute("aria-sort", direction);
        const sign = direction === "descending" ? -1 : 1;
        const rows = [...original];
        if (direction !== "none") rows.sort((x, y) => compare(x.cells[column], y.cells[column], sign));
        body.append(...rows);
        say(direction === "none" ? "Rows in their first order" : `Sorted by ${name}, ${direction}`);
      });
    });
  };
  document.querySelectorAll("table.sortable").forEach(makeSortable);

  // ---- commands: copy
  const copyOldWay = (code) => {
    const selection = getSelection();
    selection.selectAllChildren(code);
    const done = document.execCommand("copy");
    if (done) selection.removeAllRanges();
    return done;
  };

  const copy = async (code) => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      return true;
    } catch {
      return copyOldWay(code);
    }
  };

  document.querySelectorAll(".command").forEach((command) => {
    const code = command.querySelector("code");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${code.textContent}`);
    command.append(button);
    button.addEventListener("click", async () => {
      const done = await copy(code);
      button.textContent = done ? "Copied" : "Press Ctrl+C";
      say(done ? "Copied" : "The command is selected: press Ctrl+C");
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  });

  // ---- boxes: only those that scroll are stops of the Tab key
  const boxes = [...document.querySelectorAll(".scroll")];
  const mark = () => boxes.forEach((box) => {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("scrolls", scrolls);
    if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex");
  });
  mark();
  addEventListener("resize", mark);

  // ---- paper: what is folded away is printed too
  const folded = [...document.querySelectorAll("details:not([open])")];
  addEventListener("beforeprint", () => folded.forEach((part) => { part.dataset.was = part.open; part.open = true; }));
  addEventListener("afterprint", () => folded.forEach((part) => { part.open = part.dataset.was === "true"; }));
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", mark));

  // ---- contents: the section that is being read
  const links = new Map([...document.querySelectorAll("nav ol a")].map((link) => [link.hash.slice(1), link]));
  const sections = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  let current = null;
  const follow = () => {
    const reading = sections.filter((section) => section.getBoundingClientRect().top < innerHeight / 3).pop();
    if (reading === current) return;
    if (current) links.get(current.id).removeAttribute("aria-current");
    if (reading) links.get(reading.id).setAttribute("aria-current", "true");
    current = reading;
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); });
  }, { passive: true });
  follow();
})();
