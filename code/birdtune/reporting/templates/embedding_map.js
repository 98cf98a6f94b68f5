// The embedding map: a tip for the point under the pointer or the keys, a class set off from the others, clips to play.
for (const map of document.querySelectorAll(".map")) {
  const picture = map.querySelector(".plane svg"), layer = map.querySelector(".points"), tip = map.querySelector(".tip");
  const picks = Array.from((map.closest(".maps") ?? map).querySelectorAll(".pick")); // maps side by side share a list
  const points = Array.from(layer.children, node => {
    const title = node.querySelector("title"), text = title.textContent, [, x, y] = node.getAttribute("transform").match(/\(([^ ]+) ([^)]+)\)/);
    title.remove(); // the browser's own tip would lie over ours
    const sound = node.dataset.clip && document.querySelector(`.card[data-clip="${node.dataset.clip}"] audio`);
    node.setAttribute("role", sound ? "button" : "img");
    node.setAttribute("aria-label", text.replaceAll("\n", ", ") + (sound ? ", plays its clip" : ""));
    return { node, text, sound, x: Number(x), y: Number(y), classes: node.dataset.k.split(" ") };
  });
  const shownNow = () => points.filter(point => !layer.classList.contains("picked") || point.node.classList.contains("on"));
  let here = null, pinned = false;
  for (const keys of map.querySelectorAll(".keys")) keys.hidden = false;

  const show = point => {
    if (here) here.node.classList.remove("here");
    here = point;
    tip.hidden = !point;
    if (!point) return;
    point.node.classList.add("here");
    const [name, ...lines] = point.text.split("\n"), first = document.createElement("b");
    first.textContent = name;
    tip.replaceChildren(first, ...lines.map(line => Object.assign(document.createElement("span"), { textContent: line })));
    if (point.sound) {
      const what = point.sound.paused ? "Click or Enter plays its clip" : "Playing; click or Enter stops";
      tip.append(Object.assign(document.createElement("span"), { className: "quiet", textContent: what }));
    }
    const box = picture.getBoundingClientRect(), plane = tip.parentElement.getBoundingClientRect();
    const at = new DOMPoint(point.x, point.y).matrixTransform(picture.getScreenCTM());
    const x = at.x - plane.left, y = at.y - plane.top;
    tip.style.left = Math.max(4, Math.min(x + 14, box.width - tip.offsetWidth - 4)) + "px";
    tip.style.top = (y + 18 + tip.offsetHeight < box.height ? y + 14 : Math.max(4, y - tip.offsetHeight - 14)) + "px";
  };
  // The point nearest to the pointer, if it is near at all: fingers are blunt, and points small.
  const under = event => {
    const scale = picture.getScreenCTM(), at = new DOMPoint(event.clientX, event.clientY).matrixTransform(scale.inverse());
    const far = point => Math.hypot(point.x - at.x, point.y - at.y) * scale.a;
    const nearest = shownNow().reduce((best, point) => (best === null || far(point) < far(best) ? point : best), null);
    return nearest && far(nearest) < (event.pointerType === "touch" ? 24 : 12) ? nearest : null;
  };
  const play = point => {
    if (!point.sound) return;
    if (point.sound.paused) { point.sound.currentTime = 0; point.sound.play(); } else point.sound.pause();
  };
  // One stop for Tab: the arrow keys go on from there.
  const stop = point => {
    for (const other of points) other.node.setAttribute("tabindex", other === point ? 0 : -1);
  };
  const go = (point, options) => { stop(point); point.node.focus(options); };
  stop(points[0]);
  for (const point of points) {
    point.node.addEventListener("focus", () => { pinned = true; show(point); });
    point.node.addEventListener("blur", () => { pinned = false; show(null); });
    if (point.sound) for (const kind of ["play", "pause", "ended"]) point.sound.addEventListener(kind, () => { if (here === point) show(point); });
  }
  picture.addEventListener("pointermove", event => {
    const point = under(event);
    picture.style.cursor = point && point.sound ? "pointer" : "";
    if (!pinned) show(point);
  });
  picture.addEventListener("pointerleave", () => { if (!pinned) show(null); });
  picture.addEventListener("mousedown", event => event.preventDefault()); // a click gives focus to the nearest point
  picture.addEventListener("click", event => {
    const point = under(event);
    if (point) { go(point, { preventScroll: true }); play(point); } else document.activeElement.blur();
  });
  const arrows = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  layer.addEventListener("keydown", event => {
    const point = points.find(each => each.node === event.target);
    if (event.key === "Escape") point.node.blur();
    else if (event.key === "Enter" || event.key === " ") play(point);
    else if (event.key === "PageDown" || event.key === "PageUp") {
      // One after another: arrows may miss a point that lies on another.
      const now = shownNow(), at = now.indexOf(point) + (event.key === "PageDown" ? 1 : -1);
      go(now[(at + now.length) % now.length]);
    } else if (arrows[event.key]) {
      // Of the points that way, the nearest; what lies aside counts double.
      const [dx, dy] = arrows[event.key];
      const cost = other => {
        const along = (other.x - point.x) * dx + (other.y - point.y) * dy;
        return along > 0 ? along + 2 * Math.abs((other.x - point.x) * dy + (other.y - point.y) * dx) : Infinity;
      };
      const next = shownNow().reduce((best, other) => (cost(other) < cost(best) ? other : best), point);
      if (next !== point) go(next);
    } else return;
    event.preventDefault();
  });

  let picked = null;
  const pick = chosen => {
    picked = picked === chosen ? null : chosen;
    for (const other of picks) other.setAttribute("aria-pressed", other === picked);
    layer.classList.toggle("picked", picked !== null);
    for (const point of points) point.node.classList.toggle("on", picked !== null && point.classes.includes(picked.dataset.k));
    stop(shownNow()[0]);
  };
  for (const button of picks) button.addEventListener("click", () => pick(button));
}
