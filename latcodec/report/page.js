"use strict";
document.documentElement.classList.add("js");

// Charts: a button of the legend brings its curve out; a pointer near a mark reads what stands there.
for (const chart of document.querySelectorAll(".chart")) {
  const buttons = [...chart.querySelectorAll(".legend button")];
  const show = () => {
    const on = new Set(buttons.filter((b) => b.ariaPressed === "true" || b.matches(":hover, :focus-visible")).map((b) => b.dataset.series));
    chart.toggleAttribute("data-on", on.size > 0);
    for (const group of chart.querySelectorAll(".series")) group.classList.toggle("on", on.has(group.classList[1]));
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
      show();
    });
    for (const event of ["pointerenter", "pointerleave", "focus", "blur"]) button.addEventListener(event, show);
  }
  const tip = chart.querySelector(".tip");
  const marks = [...chart.querySelectorAll("[data-text]")];
  const read = (event) => {
    const home = chart.getBoundingClientRect();
    let best = null, least = 28;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      if (!box.width) continue; // of the drawing for the other width
      const x = box.x + box.width / 2, y = box.y + box.height / 2;
      const far = Math.hypot(x - event.clientX, y - event.clientY);
      if (far < least) [best, least] = [{ x: x - home.x, y: y - home.y, text: mark.dataset.text }, far];
    }
    tip.hidden = !best;
    if (!best) return;
    tip.textContent = best.text;
    tip.style.left = Math.max(0, Math.min(best.x + 12, home.width - tip.offsetWidth)) + "px";
    tip.style.top = best.y - tip.offsetHeight - 12 + "px";
  };
  chart.addEventListener("pointermove", read);
  chart.addEventListener("pointerdown", read);
  chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") tip.hidden = true; });
}

// Crops: one picture of a stack is visible; buttons, keys and taps choose which.
const flips = [...document.querySelectorAll(".flip")].map((root) => {
  const images = [...root.querySelectorAll(".stage img")];
  const inputs = [...root.querySelectorAll("input")];
  const caption = root.querySelector("figcaption"), tag = root.querySelector(".tag");
  const flip = { root, seen: 0, now: 0, count: images.length };
  flip.show = (index) => {
    flip.now = (index + images.length) % images.length;
    images.forEach((image, i) => image.classList.toggle("now", i === flip.now));
    inputs[flip.now].checked = true;
    tag.textContent = root.querySelectorAll("label span")[flip.now].lastChild.textContent;
    caption.replaceChildren(root.querySelectorAll(".about template")[flip.now].content.cloneNode(true));
  };
  inputs.forEach((input, i) => input.addEventListener("change", () => flip.show(i)));
  root.querySelector(".stage").addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    flip.show(flip.now + (event.clientX < box.x + box.width / 3 ? -1 : 1));
  });
  images.forEach((image) => image.decode && image.decode().catch(() => {})); // no flash at the first flip
  flip.show(0);
  return flip;
});
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) flips.find((f) => f.root === entry.target).seen = entry.intersectionRatio * entry.intersectionRect.height;
}, { threshold: [0, 0.1, 0.25, 0.5, 0.75, 1] });
flips.forEach((flip) => watcher.observe(flip.root));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = document.activeElement;
  const flip = flips.find((f) => f.root.contains(at)) ?? flips.filter((f) => f.seen > 60).sort((a, b) => b.seen - a.seen)[0];
  if (!flip || (at.closest?.(".scroll") && !flip.root.contains(at))) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const digit = /^[0-9]$/.test(event.key) ? (Number(event.key) + 9) % 10 : -1;
  if (step) flip.show(flip.now + step);
  else if (digit >= 0 && digit < flip.count) flip.show(digit);
  else return;
  event.preventDefault();
  if (flip.root.contains(at)) flip.root.querySelectorAll("input")[flip.now].focus();
});
