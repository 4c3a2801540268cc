"use strict";
const cases = [...document.querySelectorAll(".case")];
const filters = [...document.querySelectorAll(".filters select")];
const words = document.querySelector("#words");
const count = document.querySelector("#count");
const none = document.querySelector("#none");

function apply() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const one of cases) {
    const fits = filters.every((f) => !f.value || JSON.parse(one.dataset[f.name]).includes(f.value))
      && wanted.every((word) => one.dataset.words.includes(word));
    one.hidden = !fits;
    shown += fits;
  }
  none.hidden = shown > 0;
  count.textContent = `${shown} of ${cases.length} samples shown here`;
}

for (const control of [...filters, words]) control.addEventListener("input", apply);
document.querySelector("#reset").addEventListener("click", () => {
  for (const control of [...filters, words]) control.value = "";
  apply();
});
apply();

const dialog = document.querySelector("dialog");
let current = null;
function enlarge(one) {
  current = one;
  const copy = one.cloneNode(true);
  for (const button of copy.querySelectorAll("button")) button.replaceWith(...button.childNodes);
  const large = dialog.querySelector("#large");
  large.className = one.className.replace("case", "");  // names the picture
  large.replaceChildren(...copy.childNodes);
  if (!dialog.open) dialog.showModal();
}
function step(by) {
  const shown = cases.filter((one) => !one.hidden);
  enlarge(shown[(shown.indexOf(current) + by + shown.length) % shown.length]);
}
for (const one of cases) for (const button of one.querySelectorAll("button")) button.addEventListener("click", () => enlarge(one));
dialog.querySelector("#before").addEventListener("click", () => step(-1));
dialog.querySelector("#after").addEventListener("click", () => step(1));
dialog.addEventListener("close", () => current.querySelector("button")?.focus());  // also after going on
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
