// The page of review: one decision a detection by keys or buttons, kept by the browser, saved as a table.
const main = document.querySelector("main"), cards = Array.from(document.querySelectorAll(".card"));
const dialog = document.getElementById("other"), select = dialog.querySelector("select");
const typed = document.getElementById("new");
const place = "birdtune-review-" + main.dataset.key;
const words = { yes: "yes", no: "no", other: "other", skip: "skipped" };
let here = 0, decisions = {}, kept = true;
try { decisions = JSON.parse(localStorage.getItem(place)) || {}; } catch { kept = false; }

const soundOf = card => card.querySelector("audio");
const play = () => soundOf(cards[here]).play().catch(() => {});
const show = () => {
  const tally = { yes: 0, no: 0, other: 0, skip: 0 };
  cards.forEach((card, k) => {
    const [decision, label] = decisions[k] || [""];
    if (decision) tally[decision] += 1;
    card.dataset.decision = decision;
    card.querySelector(".said").textContent = decision === "other" ? "is " + label : words[decision] || "";
    card.classList.toggle("here", k === here);
    for (const button of card.querySelectorAll("button[data-says]"))
      button.setAttribute("aria-pressed", String(button.dataset.says === decision));
  });
  const done = Object.values(tally).reduce((a, b) => a + b);
  document.getElementById("progress").value = done;
  document.getElementById("count").textContent = `${done} of ${cards.length}: ` +
    Object.keys(words).map(key => `${tally[key]} ${words[key]}`).join(", ");
  document.getElementById("unkept").hidden = kept;
  document.getElementById("save").disabled = tally.yes + tally.no + tally.other === 0;
};
const bar = document.querySelector("nav");
const go = (to, scrolls = true) => {
  soundOf(cards[here]).pause();
  here = Math.max(0, Math.min(cards.length - 1, to));
  show();
  if (!scrolls) return;
  // Below the bar, which stays; from its top on, where a card is higher than what is left of the screen.
  const card = cards[here], above = bar.offsetHeight + 12;
  card.style.scrollMarginTop = above + "px";
  card.scrollIntoView({ block: card.offsetHeight > innerHeight - above ? "start" : "center" });
};
const decide = (decision, label) => {
  decisions[here] = [decision, label];
  try { localStorage.setItem(place, JSON.stringify(decisions)); } catch { kept = false; }
  const last = here === cards.length - 1;
  go(here + 1);
  if (!last) play();
};
const says = decision => {
  if (decision === "other") {
    typed.value = "";
    typed.setCustomValidity("");
    select.value = (decisions[here] && decisions[here][1]) || cards[here].dataset.detected;
    dialog.showModal();
    select.focus();
  } else decide(decision, decision === "yes" ? cards[here].dataset.detected : "");
};
// Names that differ in case, blanks, "_" or "-" alone are one class, as that of the list is spelt.
const folded = name => name.replace(/[\s_-]+/g, " ").trim().toLowerCase();
const listed = name => {
  const known = Array.from(select.options).find(option => folded(option.value) === folded(name));
  if (!known) select.add(new Option(name, name));
  return known ? known.value : name;
};
const take = name => {
  if (!name) return;
  dialog.close();
  const own = name === cards[here].dataset.detected;
  decide(own ? "yes" : "other", name);
};
const takeTyped = () => {
  const name = typed.value.normalize("NFC").replace(/\s+/g, " ").trim();
  if (!name) return take(select.value);
  if (folded(name) === "unknown" || !/[\p{L}\p{N}]/u.test(name) || name.startsWith("-")) {
    typed.setCustomValidity("This cannot be the name of a class: \"unknown\" means none, and \"-\" before a name that it is absent.");
    typed.reportValidity();
  } else take(listed(name));
};
const save = () => {
  const cell = text => '"' + text.replaceAll('"', '""') + '"';
  const lines = [main.dataset.columns];
  cards.forEach((card, k) => {
    const [decision, label] = decisions[k] || ["skip"], of = card.dataset;
    if (decision !== "skip")
      lines.push([cell(of.recording), of.start, of.end, cell(of.detected), decision, cell(label)].join(","));
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
  link.download = main.dataset.table;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

const keys = {
  y: () => says("yes"), n: () => says("no"), o: () => says("other"), s: () => says("skip"),
  ArrowRight: () => go(here + 1), ArrowLeft: () => go(here - 1),
  Enter: () => document.getElementById("save").click(),  // does nothing while it is disabled
  " ": () => { const sound = soundOf(cards[here]); if (sound.paused) play(); else sound.pause(); },
};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  // A button or a player that was reached by Tab takes these itself.
  if ([" ", "Enter"].includes(event.key) && event.target.closest("button, audio, summary")) return;
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
for (const [field, act] of [[select, () => take(select.value)], [typed, takeTyped]])
  field.addEventListener("keydown", event => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();  // it closes the list, and is no key of the page then
    act();
  });
typed.addEventListener("input", () => typed.setCustomValidity(""));
select.addEventListener("dblclick", () => take(select.value));
document.getElementById("take").addEventListener("click", takeTyped);
document.getElementById("save").addEventListener("click", save);
cards.forEach((card, k) => {
  card.addEventListener("pointerdown", () => { if (k !== here) { here = k; show(); } });
  for (const button of card.querySelectorAll("button[data-says]"))
    button.addEventListener("click", () => { here = k; says(button.dataset.says); button.blur(); });
});
addEventListener("beforeunload", event => { if (!kept && Object.keys(decisions).length) event.preventDefault(); });
// Classes that were typed before the page was opened again.
for (const [decision, label] of Object.values(decisions)) if (decision === "other") listed(label);
// Whoever begins reads first what to do.
const first = cards.findIndex((_, k) => !decisions[k]);
go(Math.max(0, first), first > 0);
