// Each cell knows the heading of its column: on a phone site.css sets the cells of a row below each other, labelled with it.
document.querySelectorAll("article table").forEach((table) => {
  const headings = [...table.querySelectorAll("thead th")].map((heading) => heading.textContent);
  table.querySelectorAll("tbody tr").forEach((row) => {
    [...row.cells].forEach((cell, column) => cell.setAttribute("data-heading", headings[column]));
  });
});
