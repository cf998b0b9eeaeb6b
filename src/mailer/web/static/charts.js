// Draws tables of outcomes over time as stacked bars. The table stays, for whoever reads it.
"use strict";

const MINUTE = 60, HOUR = 3600, DAY = 86400;
// Seconds from one label of time to the next: uPlot's own are too many, and some of them less than a second.
const STEPS = [1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE),
  ...[1, 2, 3, 4, 6, 8, 12].map((n) => n * HOUR), ...[1, 2, 3, 7, 14, 30, 60, 90, 180, 365].map((n) => n * DAY)]; // 30 is a month to uPlot
const FONT = "12px system-ui, sans-serif";
const GAP = 16; // pixels between two labels, at least

const language = document.documentElement.lang;
const zone = document.documentElement.dataset.zone;
const charts = new Map();

// Columns: the moments, and for each name the sum of it and of those before it.
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
  const known = charts.get(figure);
  if (known) {
    known.counts.splice(0, known.counts.length, ...counts);
    known.plot.setData(data);
    return;
  }
  const colour = (name) => {
    canvas.style.color = `var(--${name})`; // as the style sheet has it, light or dark
    const { color } = getComputedStyle(canvas);
    canvas.style.color = "";
    return color;
  };
  const number = new Intl.NumberFormat(language);
  const timeOf = (options) => {
    const format = new Intl.DateTimeFormat(language, { timeZone: zone, hourCycle: "h23", ...options });
    return (at) => format.format(at * 1000);
  };
  const seconds = () => Number(figure.dataset.seconds); // which grow while a mailing goes on
  const hour = timeOf({ hour: "2-digit", minute: "2-digit" });
  const day = timeOf({ day: "numeric", month: "short" });
  const second = timeOf({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const bucket = (at) => `${day(at)}, ${seconds() < MINUTE ? second(at) : hour(at)}`;
  const isMidnight = (at) => /^00\D00\D00$/.test(second(at));
  // A label of hours says at midnight which day begins.
  const labelOf = (step) => (at) =>
    step >= DAY || (step >= MINUTE && isMidnight(at)) ? day(at) : step < MINUTE ? second(at) : hour(at);
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = FONT;
  const widest = (from, until) => Math.max(...[until - from > 2 * DAY ? day : hour, until - from < HOUR ? second : hour, day]
    .map((label) => pen.measureText(label(until)).width));
  const axis = { font: FONT, stroke: () => colour("faint"), grid: { stroke: () => colour("line"), width: 1 } };
  const plot = new uPlot(
    {
      width: canvas.clientWidth || 300,
      height: 200,
      scales: {
        // of a single point, uPlot gives an end that is years later
        x: { range: (plot, first) => [first, plot.data[0].at(-1) + seconds()] },
        y: { range: (_, __, most) => [0, Math.max(1, most * 1.05)] },
      },
      axes: [
        {
          ...axis,
          incrs: () => STEPS.filter((step) => step >= seconds()),
          space: (_, __, from, until) => widest(from, until) + GAP,
          values: (_, splits, __, ___, step) => splits.map(labelOf(step)),
        },
        { ...axis, size: 64, values: (_, splits) => splits.map((value) => (Number.isInteger(value) ? number.format(value) : "")) },
      ],
      series: [
        { label: figure.dataset.shown, value: (_, at) => (at == null ? figure.dataset.all : bucket(at)) },
        // the highest sums first: what is drawn later stands before it
        ...series.map((each, at) => ({
          label: each.label,
          fill: () => colour(each.name),
          stroke: () => colour(each.name),
          width: 0,
          points: { show: false },
          paths: uPlot.paths.bars({ size: [0.85, 60], align: 1 }),
          // of the bar that is pointed at, else of all
          value: (_, __, ___, row) => number.format(row == null ? sum(counts[at]) : counts[at][row] ?? 0),
        })).reverse(),
      ],
      padding: [GAP / 2, 32, 0, 0], // half a label
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
