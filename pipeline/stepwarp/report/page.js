"use strict";
(() => {
  const viewer = document.getElementById("compare");
  const split = document.getElementById("split");
  const shown = document.getElementById("shown");

  const flicker = () => {
    const resting = viewer.classList.toggle("resting");
    shown.textContent = resting ? "fixed" : viewer.querySelector("[data-key=with] [aria-pressed=true]").textContent;
  };
  setInterval(() => viewer.dataset.mode === "flicker" && flicker(), 600);

  const choose = (button) => {
    const group = button.parentElement;
    viewer.dataset[group.dataset.key] = button.value;
    for (const other of group.children) other.setAttribute("aria-pressed", other === button);
  };
  for (const button of viewer.querySelectorAll(".choice button")) button.addEventListener("click", () => choose(button));

  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "f" || event.ctrlKey || event.metaKey) return;
    const next = viewer.dataset.mode === "flicker" ? "swipe" : "flicker";
    choose(viewer.querySelector(`[data-key=mode] [value=${next}]`));
  });

  const setSplit = (percent) => {
    split.value = percent;
    viewer.style.setProperty("--split", `${split.value}%`);
  };
  split.addEventListener("input", () => setSplit(split.value));
  for (const view of viewer.querySelectorAll(".view")) {
    const follow = (event) => {
      const box = view.getBoundingClientRect();
      if (event.buttons) setSplit((100 * (event.clientX - box.left)) / box.width);
    };
    view.addEventListener("pointerdown", follow);
    view.addEventListener("pointermove", follow);
  }

  document.getElementById("slice").addEventListener("input", (event) => viewer.style.setProperty("--shift", event.target.value));

  for (const views of document.querySelectorAll(".pairs .views")) {
    views.addEventListener("click", () => views.parentElement.classList.toggle("wide"));
  }

  document.getElementById("copy").addEventListener("click", (event) => {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById("methods"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    event.target.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  });

  viewer.dataset.ready = "yes";
})();
