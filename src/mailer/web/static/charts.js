// Draws tables of outcomes over time as stacked bars. The tables stay on the page.
"use strict";

const MINUTE = 60, HOUR = 3600, DAY = 86400;
// Seconds between two time labels: uPlot's own list is too long and has fractions of a second.
const STEPS = [1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE),
  ...[1, 2, 3, 4, 6, 8, 12].map((n) => n * HOUR), ...[1, 2, 3, 7, 14, 30, 60, 90, 180, 365].map((n) => n * DAY)]; // uPlot takes 30 days as a month
const FONT = "12px system-ui, sans-serif";
const MIN_LABEL_GAP = 16; // pixels between two labels

const language = document.documentElement.lang;
const zone = document.documentElement.dataset.zone;
const charts = new Map();

// Returns the series, their counts, and the data for uPlot: moments, and for each series the sum of
// its counts and those of the series below it. The highest sums come first.
function read(figure) {
  const table = document.getElementById(figure.dataset.chart);
  const series = [...table.querySelectorAll("th[data-series]")].map((head) => ({
    name: head.dataset.series,
    label: head.textContent,
  }));
  const rows = [...table.tBodies[0].rows];
  const moments = rows.map((row) => Date.parse(row.querySelector("time").dateTime) / 1000);
  const counts = series.map((_, at) => rows.map((row) => Number(row.cells[at + 1].dataset.value)));
  const sums = [];
  for (const column of counts) {
    const below = sums.at(-1);
    sums.push(below ? column.map((count, at) => count + below[at]) : column);
  }
  return { series, counts, data: [moments, ...sums.reverse()] };
}

const sum = (column) => column.reduce((all, count) => all + count, 0);

function draw(figure) {
  const canvas = figure.querySelector(".canvas");
  const { series, counts, data } = read(figure);
  const drawn = charts.get(figure);
  if (drawn) {
    drawn.counts.splice(0, drawn.counts.length, ...counts);
    drawn.plot.setData(data);
    return;
  }
  const colour = (name) => {
    canvas.style.color = `var(--${name})`; // the style sheet chooses by light or dark theme
    const { color } = getComputedStyle(canvas);
    canvas.style.color = "";
    return color;
  };
  const number = new Intl.NumberFormat(language);
  const timeOf = (options) => {
    const format = new Intl.DateTimeFormat(language, { timeZone: zone, hourCycle: "h23", ...options });
    return (at) => format.format(at * 1000);
  };
  const seconds = () => Number(figure.dataset.seconds); // the length of a bucket, which grows during a mailing
  const hour = timeOf({ hour: "2-digit", minute: "2-digit" });
  const day = timeOf({ day: "numeric", month: "short" });
  const second = timeOf({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const bucket = (at) => `${day(at)}, ${seconds() < MINUTE ? second(at) : hour(at)}`;
  const isMidnight = (at) => /^00\D00\D00$/.test(second(at));
  // At midnight, a label of hours is the day.
  const labelOf = (step) => (at) =>
    step >= DAY || (step >= MINUTE && isMidnight(at)) ? day(at) : step < MINUTE ? second(at) : hour(at);
  const measuring = document.createElement("canvas").getContext("2d");
  measuring.font = FONT;
  const widest = (from, until) => Math.max(...[until - from > 2 * DAY ? day : hour, until - from < HOUR ? second : hour, day]
    .map((label) => measuring.measureText(label(until)).width));
  const axis = { font: FONT, stroke: () => colour("faint"), grid: { stroke: () => colour("line"), width: 1 } };
  const plot = new uPlot(
    {
      width: canvas.clientWidth || 300,
      height: 200,
      scales: {
        // for a single point, uPlot itself would choose an end years later
        x: { range: (plot, first) => [first, plot.data[0].at(-1) + seconds()] },
        y: { range: (_, __, most) => [0, Math.max(1, most * 1.05)] },
      },
      axes: [
        {
          ...axis,
          incrs: () => STEPS.filter((step) => step >= seconds()),
          space: (_, __, from, until) => widest(from, until) + MIN_LABEL_GAP,
          values: (_, splits, __, ___, step) => splits.map(labelOf(step)),
        },
        { ...axis, size: 64, values: (_, splits) => splits.map((value) => (Number.isInteger(value) ? number.format(value) : "")) },
      ],
      series: [
        { label: figure.dataset.period, value: (_, at) => (at == null ? figure.dataset.total : bucket(at)) },
        // the highest sums first: later series are drawn over earlier ones
        ...series.map(({ label, name }, at) => ({
          label,
          fill: () => colour(name),
          stroke: () => colour(name),
          width: 0,
          points: { show: false },
          paths: uPlot.paths.bars({ size: [0.85, 60], align: 1 }),
          // the count of the bar under the pointer, else the total
          value: (_, __, ___, row) => number.format(row == null ? sum(counts[at]) : counts[at][row] ?? 0),
        })).reverse(),
      ],
      padding: [MIN_LABEL_GAP / 2, 32, 0, 0], // half a label
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), zone),
      cursor: { drag: { x: false, y: false } },
    },
    data,
    canvas,
  );
  charts.set(figure, { plot, counts });
  new ResizeObserver(() => canvas.clientWidth && plot.setSize({ width: canvas.clientWidth, height: 200 })).observe(canvas);
}

const drawAll = () => document.querySelectorAll("[data-chart]").forEach(draw);
document.addEventListener("DOMContentLoaded", drawAll);
document.addEventListener("live", drawAll);
document.addEventListener("htmx:afterSettle", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(({ plot }) => plot.redraw()));
