// Draws tables of outcomes over time as stacked bars, with the library uPlot. The tables stay on the
// page. A figure (`macros.html`, `chart`) contains the table and an empty element for the drawing. Each
// row of the table is a bucket: an interval of time, and the count of each outcome in it.
"use strict";

const MINUTE = 60, HOUR = 3600, DAY = 86400;
// Possible seconds between two time labels: uPlot's own list is too long and has fractions of a second.
const LABEL_STEPS = [1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE),
  ...[1, 2, 3, 4, 6, 8, 12].map((n) => n * HOUR), ...[1, 2, 3, 7, 14, 30, 60, 90, 180, 365].map((n) => n * DAY)]; // for uPlot, 30 days are a month
const FONT = "12px system-ui, sans-serif";
const MIN_LABEL_GAP = 16; // pixels between two labels
const MAX_YEARLESS_SPAN = 360 * DAY; // days of a longer chart are labelled with the year, else they would repeat

const language = document.documentElement.lang;
const zone = document.documentElement.dataset.zone;
const charts = new Map(); // by figure: the uPlot object, and the counts of each series

// Returns the series (one for each outcome), their counts by bucket, and the data for uPlot: the start
// of each bucket, and for each series the heights of its bars: its counts and those of the series
// below it. The highest bars come first.
function readTable(figure) {
  const table = document.getElementById(figure.dataset.chart);
  const series = [...table.querySelectorAll("th[data-series]")].map((head) => ({
    name: head.dataset.series,
    label: head.textContent,
  }));
  const rows = [...table.tBodies[0].rows];
  const moments = rows.map((row) => Date.parse(row.querySelector("time").dateTime) / 1000);
  const counts = series.map((_, index) => rows.map((row) => Number(row.cells[index + 1].dataset.value)));
  const heights = [];
  for (const seriesCounts of counts) {
    const below = heights.at(-1);
    heights.push(below ? seriesCounts.map((count, bucket) => count + below[bucket]) : seriesCounts);
  }
  return { series, counts, data: [moments, ...heights.reverse()] };
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

// Draws the chart of a figure, or updates it if it is drawn. Moments are in seconds since 1970.
function draw(figure) {
  const canvas = figure.querySelector(".canvas");
  const { series, counts, data } = readTable(figure);
  const drawn = charts.get(figure);
  if (drawn) {
    drawn.counts.splice(0, drawn.counts.length, ...counts); // changed in place: the legend reads this array
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
  const formatter = (options) => {
    const format = new Intl.DateTimeFormat(language, { timeZone: zone, hourCycle: "h23", ...options });
    return (moment) => format.format(moment * 1000);
  };
  const bucketSeconds = () => Number(figure.dataset.seconds); // grows while a mailing runs
  const asDay = formatter({ day: "numeric", month: "short" });
  const asDayOfYear = formatter({ day: "numeric", month: "short", year: "numeric" });
  const asMinute = formatter({ hour: "2-digit", minute: "2-digit" });
  const asSecond = formatter({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const asBucket = (moment) => `${asDay(moment)}, ${bucketSeconds() < MINUTE ? asSecond(moment) : asMinute(moment)}`;
  const isMidnight = (moment) => /^00\D00\D00$/.test(asSecond(moment));
  const dayFormat = (from, until) => (until - from > MAX_YEARLESS_SPAN ? asDayOfYear : asDay);
  // The label of a moment of a chart, for labels `step` seconds apart. Midnight is labelled with the day.
  const labelOf = (step, { min, max }) => (moment) => {
    if (step >= DAY || (step >= MINUTE && isMidnight(moment))) return dayFormat(min, max)(moment);
    return step < MINUTE ? asSecond(moment) : asMinute(moment);
  };
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = FONT;
  // Returns the width in pixels of the widest label that may occur between two moments.
  const maxLabelWidth = (from, until) => {
    const formats = [dayFormat(from, until), asMinute, ...(until - from < HOUR ? [asSecond] : [])];
    return Math.max(...formats.map((format) => ruler.measureText(format(until)).width));
  };
  const axis = { font: FONT, stroke: () => colour("faint"), grid: { stroke: () => colour("line"), width: 1 } };
  const plot = new uPlot(
    {
      width: canvas.clientWidth || 300,
      height: 200,
      scales: {
        // for a single point, uPlot itself would choose an end years later
        x: { range: (plot, first) => [first, plot.data[0].at(-1) + bucketSeconds()] },
        y: { range: (_, __, highest) => [0, Math.max(1, highest * 1.05)] },
      },
      axes: [
        {
          ...axis,
          incrs: () => LABEL_STEPS.filter((step) => step >= bucketSeconds()),
          space: (_, __, from, until) => maxLabelWidth(from, until) + MIN_LABEL_GAP,
          values: (plot, splits, _, __, step) => splits.map(labelOf(step, plot.scales.x)),
        },
        { ...axis, size: 64, values: (_, splits) => splits.map((value) => (Number.isInteger(value) ? number.format(value) : "")) },
      ],
      series: [
        { label: figure.dataset.period, value: (_, moment) => (moment == null ? figure.dataset.total : asBucket(moment)) },
        // the highest bars first: later series are drawn over earlier ones
        ...series.map(({ label, name }, index) => ({
          label,
          fill: () => colour(name),
          stroke: () => colour(name),
          width: 0,
          points: { show: false },
          paths: uPlot.paths.bars({ size: [0.85, 60], align: 1 }),
          // the count of the bucket under the pointer, else the total
          value: (_, __, ___, bucket) => number.format(bucket == null ? sum(counts[index]) : counts[index][bucket] ?? 0),
        })).reverse(),
      ],
      padding: [MIN_LABEL_GAP / 2, 32, 0, 0], // half a label
      tzDate: (moment) => uPlot.tzDate(new Date(moment * 1000), zone),
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
