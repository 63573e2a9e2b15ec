// Draws the figures, and draws them again where the reader chooses another axis or the system
// another colour scheme.

const { axes, figures } = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();

// A text in a tooltip has this format: where the nearest point is meant, Vega-Lite finds only values
// that have one.
const expressionFunctions = { asText: String };

const CONFIG = {
  customFormatTypes: true,
  background: null,
  font: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--line)",
    domainColor: "var(--line)", tickColor: "var(--line)", labelFontSize: 11.5, titleFontSize: 12,
    titleFontWeight: 400, titlePadding: 8, labelPadding: 6,
  },
  axisX: { grid: false },
  axisY: { domain: false, ticks: false },
  legend: {
    labelColor: "var(--ink)", titleColor: "var(--muted)", labelFontSize: 12, titleFontSize: 12,
    titleFontWeight: 400, labelLimit: 260, symbolStrokeWidth: 3, offset: 10,
  },
};

// A specification with the style sheet's colours in the place of its variables.
function coloured(specification) {
  const style = getComputedStyle(document.documentElement);
  const text = JSON.stringify(specification);
  return JSON.parse(text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim()));
}

// A copy of a specification whose curves are drawn against another field.
function against(node, field) {
  if (Array.isArray(node)) return node.map((one) => against(one, field));
  if (node === null || typeof node !== "object") return node;
  const copy = {};
  for (const [key, value] of Object.entries(node)) {
    const ours = key === "x" && value && value.field in axes;
    const axis = ours && { ...value.axis, title: axes[field].title, labelExpr: axes[field].labels };
    copy[key] = key === "values" ? value : ours ? { ...value, field, axis } : against(value, field);
  }
  return copy;
}

async function drawOne(node, field) {
  const id = node.dataset.figure;
  const specification = coloured(against(figures[id], field));
  views.get(id)?.finalize();
  const view = await vegaEmbed(node, specification, {
    actions: false, renderer: "svg", config: coloured(CONFIG), tooltip: { theme: "custom" },
    expressionFunctions,
  });
  views.set(id, view);
}

// One drawing after another, so that the last choice is the one that stays.
let drawing = Promise.resolve();

function draw() {
  const field = document.querySelector("input[name=axis]:checked").value;
  delete document.body.dataset.drawn;
  drawing = drawing.then(async () => {
    for (const node of document.querySelectorAll("[data-figure]")) await drawOne(node, field);
    document.body.dataset.drawn = field;
  });
}

for (const input of document.querySelectorAll("input[name=axis]")) input.addEventListener("change", draw);
dark.addEventListener("change", draw);
draw();
