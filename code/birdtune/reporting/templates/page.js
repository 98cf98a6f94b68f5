// What the pages do: sort and filter tables, follow a sound that plays.
"use strict";
// Sort a table by the column whose heading is pressed; unknown values stay last.
const asText = new Intl.Collator(undefined, { numeric: true });
for (const button of document.querySelectorAll("th > button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, table = heading.closest("table"), body = table.tBodies[0];
    const column = heading.cellIndex, first = heading.dataset.first || "ascending";
    const was = heading.getAttribute("aria-sort");
    const now = was === null ? first : was === "ascending" ? "descending" : "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", now);
    const sign = now === "ascending" ? 1 : -1;
    const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    const rows = Array.from(body.rows, row => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNaN(a) || isNaN(b) ? asText.compare(a, b) : a - b);
    });
    body.append(...rows.map(pair => pair[1]));
  });
}
// Show only the rows that hold what is typed.
for (const field of document.querySelectorAll("input[data-filters]")) {
  field.closest("p").hidden = false;
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of document.getElementById(field.dataset.filters).tBodies[0].rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
// A line runs through the spectrogram while its sound plays; a click there jumps to that moment.
for (const card of document.querySelectorAll(".card")) {
  const sound = card.querySelector("audio"), plot = card.querySelector(".plot");
  if (!sound || !plot) continue;
  const seconds = Number(card.dataset.seconds), line = document.createElement("i");
  plot.append(line);
  const follow = () => {
    line.style.left = 100 * Math.min(1, sound.currentTime / seconds) + "%";
    if (!sound.paused) requestAnimationFrame(follow);
  };
  sound.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== sound) other.pause();
    line.style.opacity = 1;
    follow();
  });
  sound.addEventListener("seeked", follow);
  // Of the picture: below the plot, bars say what they are when pointed at.
  plot.parentElement.addEventListener("click", event => {
    const area = plot.getBoundingClientRect(), share = (event.clientX - area.left) / area.width;
    if (share < 0 || share > 1) return;
    sound.currentTime = seconds * share;
    sound.play();
  });
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
