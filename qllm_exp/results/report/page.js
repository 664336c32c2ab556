// The page is complete without this script, which makes tables of runs sortable and opens collapsed parts for printing.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const compare = (rowA, rowB) => {
        const [a, b] = [value(rowA), value(rowB)];
        return isFinite(a) && isFinite(b) ? a - b : a.localeCompare(b, "en", { numeric: true });
      };
      const rows = [...table.tBodies[0].rows].sort(compare);
      table.tBodies[0].append(...(descending ? rows.reverse() : rows));
    });
  });
}
let collapsed = [];
addEventListener("beforeprint", () => {
  collapsed = [...document.querySelectorAll("details:not([open])")];
  collapsed.forEach((element) => (element.open = true));
});
addEventListener("afterprint", () => collapsed.forEach((element) => (element.open = false)));
