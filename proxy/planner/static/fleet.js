"use strict";
// Draws the two plots of a fleet plan from the JSON in #data. Colours come from the style sheet at every drawing.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const DAY = 86400, HOUR = 3600, HEIGHT = 240;
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hue = index => () => style(`--c${index}`);
  const number = value => value == null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") :
    String(+value.toPrecision(4));
  const stamp = at => data.dated ? new Date(at * 1000).toISOString().slice(0, 16).replace("T", " ") :
    `day ${Math.floor(at / DAY) + 1}, ${String(Math.floor(at % DAY / HOUR)).padStart(2, "0")}:00`;
  const tick = at => data.dated ? new Date(at * 1000).toISOString().slice(5, 10) : `day ${Math.floor(at / DAY) + 1}`;
  const stepped = uPlot.paths.stepped({align: 1});

  const line = (label, stroke, extra) => ({label, stroke, width: 1.75, points: {show: false}, paths: stepped,
    value: (plot, value) => number(value), ...extra});
  const axis = extra => ({stroke: () => style("--soft"), font: "12px system-ui, sans-serif", ticks: {show: false},
    grid: {stroke: () => style("--grid"), width: 1}, ...extra});

  function draw(id, columns, lines) {
    const place = document.getElementById(id);
    const days = (plot, index, low, high) => {
      const every = DAY * Math.max(1, Math.ceil((high - low) / DAY / 14)), ticks = [];
      for (let at = Math.ceil(low / every) * every; at <= high; at += every) ticks.push(at);
      return ticks;
    };
    const plot = new uPlot({
      width: place.clientWidth, height: HEIGHT, padding: [8, 16, 0, 0],
      scales: {x: {time: false}, y: {range: (plot, low, high) => [Math.min(0, low), Math.max(1, high * 1.08)]}},
      cursor: {sync: {key: "fleet"}, y: false, drag: {x: true, y: false}},
      legend: {markers: {width: 0, fill: (plot, index) => plot.series[index].stroke(plot, index)}},
      axes: [axis({splits: days, values: (plot, ticks) => ticks.map(tick)}),
        axis({size: 64, values: (plot, ticks) => ticks.map(number)})],
      series: [{label: data.dated ? "UTC" : "at", value: (plot, at) => at == null ? "–" : stamp(at)}, ...lines],
    }, [data.at, ...columns], place);
    addEventListener("resize", () => plot.setSize({width: place.clientWidth, height: HEIGHT}));
    return plot;
  }

  const plots = [
    draw("replicas", [...data.replicas.map(one => one.values), data.busy],
      [...data.replicas.map((one, index) => line(one.name, hue(index), index ? {width: 1.25} : {width: 2.25})),
        line("needed for all of it", hue(3), {dash: [4, 4], width: 1})]),
    draw("cost", [data.bill, data.cost], [line("everything at the API", hue(1)), line("API and GPUs as recommended", hue(0))]),
  ];
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(plot => plot.redraw(false)));
})();
