"use strict";
(() => {
  const main = document.querySelector("main");
  const chips = [...document.querySelectorAll(".chip")];
  const single = (number) => {
    if (number === null) delete main.dataset.only;
    else main.dataset.only = number;
    for (const chip of chips) chip.setAttribute("aria-pressed", chip.value === number);
  };
  for (const chip of chips) {
    chip.addEventListener("click", () => single(main.dataset.only === chip.value ? null : chip.value));
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && single(null));

  main.dataset.ready = "yes";
})();
