// The table of all runs: a click on a column's head sorts it, and the words in the field leave the
// rows that have all of them. Without this script it is a table.

const field = document.querySelector(".find-runs");
const table = document.querySelector("article table");
const body = table.tBodies[0];
const rows = [...body.rows];
const byText = new Intl.Collator("en", { numeric: true }).compare;

function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  return /^[\d,.]+$/.test(text) ? Number(text.replaceAll(",", "")) : text;
}

function sortBy(column, direction) {
  rows.sort((first, second) => {
    const [a, b] = [valueOf(first, column), valueOf(second, column)];
    if (a === "–" || b === "–") return (a === "–") - (b === "–"); // what is missing comes last
    return direction * (typeof a === "number" ? a - b : byText(a, b));
  });
  body.append(...rows);
}

[...table.tHead.rows[0].cells].forEach((head, column) => {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.ariaSort === "ascending";
    for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
    head.ariaSort = down ? "descending" : "ascending";
    sortBy(column, down ? -1 : 1);
  });
});

// words, no numbers, and from the address the name of the run's file: a folder above it is not the
// run's, and "60" is no part of 188,600
const texts = new Map(rows.map((row) => {
  const words = [...row.cells].filter((cell, column) => typeof valueOf(row, column) !== "number");
  const file = row.querySelector("a").pathname.split("/").pop();
  return [row, [...words.map((cell) => cell.textContent), file].join(" ").toLowerCase()];
}));

function find() {
  const words = field.querySelector("input").value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    row.hidden = !words.every((word) => texts.get(row).includes(word));
  }
  const found = rows.filter((row) => !row.hidden).length;
  field.querySelector("output").textContent = `${found} of ${rows.length} runs`;
}

field.querySelector("input").addEventListener("input", find);
field.hidden = false;
find();
