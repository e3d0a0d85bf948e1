"use strict";
const data = document.getElementById("data");
const { outcomes, datasets } = data ? JSON.parse(data.textContent) : {};

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const now = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.style.colorScheme = now === "dark" ? "light" : "dark";
});

/* A cell is [outline, level at which it is still found], a detection [outline, level, outcome]. Level k is a score of k/100,
   and what a detection found does not depend on those of lower scores, so a threshold only hides. */
function layersOf(picture, level, shown) {
  const { cells, crowds, detections } = picture;
  const counted = detections.filter((detection) => detection[1] >= level);
  const of = (outcome) => counted.filter((detection) => detection[2] === outcome);
  const parts = {
    truth: shown.truth ? cells : [],
    prediction: shown.prediction ? counted : [],
    hit: shown.errors ? of(outcomes.hit) : [],
    missed: shown.errors ? cells.filter((cell) => cell[1] < level) : [],
    false: shown.errors ? of(outcomes.false) : [],
    crowd: shown.truth || shown.errors ? crowds.map((outline) => [outline]) : [],
  };
  const found = cells.filter((cell) => cell[1] >= level).length;
  return { parts, counts: { found, missed: cells.length - found, false: of(outcomes.false).length } };
}

function sentence({ found, missed, false: wrong }) {
  return `${found} found, ${missed} missed, ${wrong} false`;
}

function percent(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)} %` : "–";
}

function drawPicture(figure, level, shown) {
  const picture = datasets[figure.dataset.dataset].pictures[figure.dataset.picture];
  const { parts, counts } = layersOf(picture, level, shown);
  for (const [name, items] of Object.entries(parts)) {
    const outline = items.map((item) => item[0]).join("");
    const layer = figure.querySelector(`g.${name}`);
    layer.dataset.count = items.length;
    for (const path of layer.children) path.setAttribute("d", outline);
  }
  figure.querySelector(".counts").textContent = sentence(counts);
}

function drawTotal(element, level) {
  const { cells, found, false: wrong } = datasets[element.dataset.dataset];
  const [right, falses] = [found[level], wrong[level]];
  element.textContent =
    `${sentence({ found: right, missed: cells - right, false: falses })}; recall ${percent(right, cells)}, ` +
    `precision ${percent(right, right + falses)}, F1 ${percent(2 * right, cells + right + falses)}`;
}

const controls = document.getElementById("controls");
if (controls) {
  let waiting = false;
  const draw = () => {
    waiting = false;
    const level = Number(controls.level.value);
    const shown = Object.fromEntries(["truth", "prediction", "errors"].map((name) => [name, controls[name].checked]));
    document.getElementById("score").textContent = (level / 100).toFixed(2);
    for (const figure of document.querySelectorAll(".picture")) drawPicture(figure, level, shown);
    for (const element of document.querySelectorAll(".total")) drawTotal(element, level);
  };
  controls.addEventListener("input", () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  for (const frame of document.querySelectorAll(".frame")) {
    frame.addEventListener("click", () => {
      const isLarge = frame.parentElement.classList.toggle("large");
      frame.setAttribute("aria-pressed", isLarge);
    });
  }
  draw();
}
