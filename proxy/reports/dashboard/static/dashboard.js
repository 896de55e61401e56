"use strict";
// Plots, and updates in place. What the server sends is HTML that it has escaped; it is parsed without being run, and
// only what differs is touched, so that scroll, focus and selection stay where they are.
(() => {
  const $ = id => document.getElementById(id);
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // ---- plots

  const HOUR = 3600, DAY = 86400, plots = [];
  const number = value => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));
  let series = $("plots") && JSON.parse($("plots").textContent);

  function axis(extra) {
    return {stroke: () => style("--soft"), font: "12px system-ui, sans-serif", ticks: {show: false},
      grid: {stroke: () => style("--grid"), width: 1}, ...extra};
  }

  function moments(plot, at, index, space, step) {
    const spelt = (second, options) => new Intl.DateTimeFormat("en-GB", {timeZone: series.zone, ...options}).format(second * 1000);
    let before = "";
    return at.map(second => {
      const day = spelt(second, {day: "numeric", month: "short"}), fresh = day !== before;
      before = day;
      return step >= DAY ? day : spelt(second, {hour: "2-digit", minute: "2-digit"}) + (fresh ? "\n" + day : "");
    });
  }

  // A point is a stretch of time: it is drawn as wide as it is long.
  const ends = () => [...series.at.slice(1), series.end];
  const middle = () => series.at.map((begin, at) => (begin + ends()[at]) / 2);
  const stretch = () => series.at.length > 1 ? series.at[1] - series.at[0] : Math.max(60, series.end - series.at[0]);

  function options(place, lines, top) {
    const last = plot => plot.data[0].length - 1;
    const value = (plot, given, index, at) => {
      const found = given == null ? plot.data[index][at == null ? last(plot) : at] : given;
      return found == null ? "–" : number(found);
    };
    return {
      width: place.clientWidth, height: place.clientHeight, padding: [8, 12, 0, 0], legend: {show: false},
      tzDate: second => uPlot.tzDate(new Date(second * 1000), series.zone),
      cursor: {sync: {key: "traffic"}, y: false, drag: {x: false, y: false}, points: {show: false}},
      scales: {x: {time: true, range: () => [series.at[0], Math.max(series.end, series.at[0] + 60)]},
        y: {range: (plot, low, high) => [0, Math.max(top, (high || 0) * 1.08)]}},
      axes: [axis({space: 70, size: 40, values: moments}), axis({size: 64, space: 28, values: (plot, at) => at.map(number)})],
      series: [{}, ...lines.map(line => ({...line, value, points: {show: false}}))],
      hooks: {setCursor: [plot => tell(plot)]},
    };
  }

  // The reading under the pointer, above the first plot.
  function tell(plot) {
    const at = plot.cursor.idx, box = $("reading");
    if (!box || at == null) { if (box) box.textContent = ""; return; }
    const when = new Intl.DateTimeFormat("en-GB", {timeZone: series.zone, dateStyle: "medium",
      ...(stretch() < DAY ? {timeStyle: "short"} : {})}).format(series.at[at] * 1000);
    const busy = series.busy[at], bid = series.bid[at];
    box.textContent = `${when}: own GPUs ${number(series.own[at])}, APIs ${number(series.api[at])}` +
      (busy == null ? "" : `, ${number(busy)} % used`) + (bid == null ? "" : `, bid price ${number(bid)} USD`);
  }

  function columns() {
    const all = series.own.map((own, at) => own + series.api[at]);
    return {traffic: [middle(), all, series.own], busy: [middle(), series.busy], bid: [middle(), series.bid]};
  }

  function draw() {
    if (!series || typeof uPlot === "undefined") return;
    const bars = uPlot.paths.bars({size: [0.86, 60], gap: 0});
    const data = columns();
    const fill = name => () => style(name);
    // The whole is drawn first, in the APIs' colour, and the own part over it: what is seen of the whole is the APIs'.
    make("traffic", [{stroke: fill("--api"), fill: fill("--api"), width: 0, paths: bars}, {stroke: fill("--own"), fill: fill("--own"), width: 0, paths: bars}], 1);
    make("busy", [{stroke: fill("--busy"), fill: fill("--busy"), width: 0, paths: bars}], 100);
    make("bid", [{stroke: fill("--bid"), fill: fill("--bid"), width: 0, paths: bars}], 0.01);

    function make(name, lines, top) {
      const place = $(`plot-${name}`);
      if (place) plots.push([name, place, new uPlot(options(place, lines, top), data[name], place)]);
    }
  }

  function redraw() {
    const data = columns();
    plots.forEach(([name, , plot]) => plot.setData(data[name]));
  }

  const resize = () => plots.forEach(([, place, plot]) => plot.setSize({width: place.clientWidth, height: place.clientHeight}));
  const recolour = () => plots.forEach(([, , plot]) => plot.redraw(false));

  // ---- updates in place

  function same(a, b) {
    return a.nodeType === b.nodeType && a.nodeName === b.nodeName;
  }

  function morph(place, fresh) {
    const old = [...place.childNodes], wanted = [...fresh.childNodes];
    wanted.forEach((next, at) => {
      const now = old[at];
      if (!now) place.append(document.importNode(next, true));
      else if (!same(now, next)) now.replaceWith(document.importNode(next, true));
      else if (now.nodeType === Node.TEXT_NODE) { if (now.data !== next.data) now.data = next.data; }
      else if (now.nodeType === Node.ELEMENT_NODE) {
        for (const {name} of [...now.attributes]) if (!next.hasAttribute(name) && name !== "open") now.removeAttribute(name);
        for (const {name, value} of next.attributes) if (now.getAttribute(name) !== value) now.setAttribute(name, value);
        morph(now, next);
      }
    });
    old.slice(wanted.length).forEach(gone => gone.remove());
  }

  const parser = new DOMParser();

  function show(parts) {
    for (const [name, html] of Object.entries(parts)) {
      if (name === "plots") continue;
      const place = document.querySelector(`[data-part="${name}"]`);
      if (!place || paused || place.contains(document.activeElement) && name === "decisions") continue;
      morph(place, parser.parseFromString(html, "text/html").body);
    }
    if (parts.plots && !paused) { series = parts.plots; redraw(); }
  }

  // ---- the stream

  const link = $("link"), pause = $("pause"), AGAIN_MS = [2000, 5000, 15000, 30000];
  let source = null, paused = false, failures = 0, timer = 0;

  function say(state, text) {
    if (link.dataset.state === state) return;  // a screen reader hears of a change, not of every event
    link.dataset.state = state;
    link.textContent = text;
  }

  function close() {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  }

  function open() {
    close();
    if (paused || document.hidden) return;
    source = new EventSource(link.dataset.stream);
    source.onmessage = event => {
      if ("pending" in link.dataset) { close(); location.reload(); return; }  // the figures are there
      failures = 0;
      say("live", "Live");
      show(JSON.parse(event.data));
    };
    source.onerror = () => {
      if (source && source.readyState === EventSource.CONNECTING) { say("lost", "Reconnecting …"); return; }
      close();
      ask();
    };
  }

  // The stream was refused: find out why, and come back later unless nobody is signed in any more.
  async function ask() {
    const wait = AGAIN_MS[Math.min(failures++, AGAIN_MS.length - 1)];
    try {
      const stop = new AbortController();
      const answer = await fetch(link.dataset.stream, {signal: stop.signal, redirect: "error"});
      stop.abort();
      if (answer.status === 401 || answer.status === 403) {
        say("over", "Signed out");
        const again = document.createElement("a");
        again.href = location.href;
        again.textContent = "Sign in again";
        link.append(" ", again);
        return;
      }
      say("lost", answer.status === 503 ? "Busy, trying again …" : "Reconnecting …");
    } catch { say("lost", "Reconnecting …"); }
    timer = setTimeout(open, wait);
  }

  function begin() {
    draw();
    addEventListener("resize", resize);
    addEventListener("theme", recolour);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    document.addEventListener("visibilitychange", () => document.hidden ? close() : open());  // a browser keeps few connections
    addEventListener("pagehide", close);
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.textContent = paused ? "Resume" : "Pause";
      if (paused) { close(); say("paused", "Paused"); } else { say("lost", "Connecting …"); open(); }
    });
    say("lost", "Connecting …");
    open();
  }

  begin();
})();
