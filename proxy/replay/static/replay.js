"use strict";
// Draws the plots of a replay from the JSON in #data. Colours come from the style sheet at every drawing, so that a
// switch between light and dark needs no reload.
(() => {
  const {began, policies} = JSON.parse(document.getElementById("data").textContent);
  const HEIGHT = 240, MINUTE = 60, HOUR = 3600, DAY = 86400;
  const STEPS = [1, 2, 5, 10, 15, 30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR,
    3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 28 * DAY, 91 * DAY, 364 * DAY];
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const two = number => String(number).padStart(2, "0");

  function elapsed(seconds) {
    const whole = Math.round(seconds), days = Math.floor(whole / DAY);
    const clock = `${two(Math.floor(whole % DAY / HOUR))}:${two(Math.floor(whole % HOUR / MINUTE))}`;
    return `${days ? days + " d " : ""}${clock}:${two(whole % MINUTE)}`;
  }

  function tick(seconds, step) {
    if (seconds === 0) return "0";
    if (step % DAY === 0) return `${seconds / DAY} d`;
    if (step % HOUR === 0) return `${seconds / HOUR} h`;
    return step % MINUTE === 0 ? `${seconds / MINUTE} min` : `${seconds} s`;
  }

  // Hours and minutes, and the date under the first and at every midnight; from a day on, the date alone.
  function moments(plot, at, index, space, step) {
    let before = "";
    return at.map(second => {
      const [date, clock] = new Date(second * 1000).toISOString().split("T"), fresh = date !== before;
      before = date;
      return step % DAY === 0 ? date : clock.slice(0, step < MINUTE ? 8 : 5) + (fresh ? "\n" + date : "");
    });
  }

  const number = value => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") :
    String(+value.toPrecision(4));
  const hue = index => () => style(`--c${index}`);

  // What the legend says: the value under the cursor, or else the last one.
  const reading = text => (plot, value, index, at) => {
    const found = at == null ? plot.data && plot.data[index].findLast(one => one != null) : value;
    return found == null ? "–" : text(found);
  };

  function line(label, stroke, extra) {
    return {label, stroke, width: 1.75, spanGaps: true, points: {show: false}, value: reading(number), ...extra};
  }

  function axis(extra) {
    return {stroke: () => style("--soft"), font: "12px system-ui, sans-serif", grid: {stroke: () => style("--grid"), width: 1},
      ticks: {show: false}, ...extra};
  }

  function draw(id, curves, extra) {
    const place = document.getElementById(id), dated = began !== null;
    const shifted = at => dated ? at.map(second => began + second) : at;
    const data = uPlot.join(curves.map(curve => [shifted(curve.at), curve.values]));
    const time = dated
      ? {label: "UTC", value: reading(at => new Date(at * 1000).toISOString().slice(0, 19).replace("T", " "))}
      : {label: "after", value: reading(elapsed)};
    const along = dated ? axis({space: 90, size: 44, values: moments}) :
      axis({space: 70, size: 28, incrs: STEPS, values: (plot, at, index, space, step) => at.map(second => tick(second, step))});
    const plot = new uPlot({
      width: place.clientWidth, height: HEIGHT, padding: [8, 16, 0, 0],
      tzDate: at => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      scales: {x: {time: dated}, y: {range: {min: {pad: 0, soft: 0, mode: 1}, max: {pad: 0.08, soft: extra.top || 0, mode: 2}}}},
      cursor: {sync: {key: "replay"}, y: false, drag: {x: true, y: false}},
      legend: {markers: {show: true, width: 0, stroke: null, fill: (plot, index) => plot.series[index].stroke(plot, index)}},
      axes: [along, axis({size: 56, values: (plot, at) => at.map(number)})],
      series: [time, ...curves.map(curve => curve.line)],
    }, data, place);
    addEventListener("resize", () => plot.setSize({width: place.clientWidth, height: HEIGHT}));
    return plot;
  }

  const of = key => policies.map(one => ({at: one.at, values: one[key], line: line(one.name, hue(one.colour))}));
  const first = policies[0];
  const bill = {at: first.at, values: first.bill, line: line("everything to the API", () => style("--ink"), {dash: [6, 5], width: 1.5})};
  const plots = [draw("cost", [bill, ...of("cost")], {}), draw("busy", of("busy"), {top: 100}), draw("bid", of("bid"), {})];

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(plot => plot.redraw(false)));
})();
