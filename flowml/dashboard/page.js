/* Draws what the Bokeh charts do not: header, live graph, stragglers, events. The data are those of
   flowml/state.json. Nothing of them is taken as HTML: text goes in as text. */
window.flowml = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const STATES = {
    running: ["#dff3e6", "#2e8b57", "running"],
    waiting: ["#fdf1d6", "#c08a1e", "waiting at a barrier"],
    blocked: ["#f9dcea", "#b0306a", "blocked by staleness"],
    failed: ["#fbdcd8", "#c0392b", "failed"],
    ended: ["#e9eef6", "#7d93b5", "ended"],
    idle: ["#f4f5f8", "#9aa3b2", "nothing known"],
  };
  const OVER = ["done", "until", "stopped", "failed", "lost"];
  const BOX = 46, RING = 9;
  let drawn = null;  // the run whose graph stands there

  const number = (value, digits = 4) => value === null || value === undefined ? "–"
    : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
  const percent = (value) => value === null ? "–" : `${Math.round(100 * value)} %`;
  const duration = (seconds) => {
    if (seconds === null || seconds === undefined) return "–";
    if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
    const minutes = Math.floor(seconds / 60);
    return minutes < 60 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };
  const bytes = (value) => {
    for (const unit of ["B", "kiB", "MiB", "GiB"]) {
      if (value < 999.5) return `${Number(value.toPrecision(3))} ${unit}`;
      value /= 1024;
    }
    return `${Number(value.toPrecision(3))} TiB`;
  };
  const text = (name, value) => {
    const place = document.querySelector(`#flowml [data-text="${name}"]`);
    if (place && place.textContent !== value) place.textContent = value;
    return place;
  };
  const element = (name, attributes, parent, words) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (words !== undefined) made.textContent = words;
    parent.appendChild(made);
    return made;
  };

  function header(run) {
    text("graph", run.graph);
    text("status", run.status).className = `pill ${run.status}`;
    text("subtitle", `${run.replicas.length} replicas · ${run.executor} · run ${run.id}`);
    text("step", `${run.step.toLocaleString("en")}${run.steps === null ? "" : ` / ${run.steps.toLocaleString("en")}`}`);
    document.querySelector('#flowml [data-width="progress"]').style.width =
      run.steps ? `${Math.min(100, 100 * run.step / run.steps)}%` : "0";
    text("loss", number(run.loss));
    text("rate", number(run.steps_per_second, 3));
    text("remaining", duration(run.remaining_seconds));
    text("seconds", duration(run.seconds));
    text("checkpoint", run.checkpoint_seconds === null ? "none" : `${duration(run.checkpoint_seconds)} old`);
    text("promises", run.promises);
    text("metrics", Object.entries(run.metrics).map(([name, value]) => `${name} ${number(value)}`).join(" · "));
    text("scorenote", Object.keys(run.metrics).length ? "dotted: right axis" : "");
    text("sharesnote", run.executor === "tasks" ? "one Dask task an operator: see the task stream"
      : run.operators.some((o) => o.share !== null) ? "mean of the replicas, last seconds"
      : OVER.includes(run.status) ? "nobody looked while it ran" : "counted while somebody looks");
    text("bytesnote", OVER.includes(run.status) ? "in all" : "a second, and so far");
    text("graphnote", run.looked_at ? "live" : run.operators.some((o) => o.share !== null) ? "as last seen" : "");
    document.querySelector('#flowml [data-link="json"]').href = `flowml/state.json?run=${encodeURIComponent(run.id)}`;
  }

  function skeleton(run) {
    document.querySelector("#flowml").classList.toggle("tall", run.height > 0.9 * run.width);
    const place = document.querySelector("#flowml-graph .drawing");
    place.replaceChildren();
    const sheet = element("svg", {viewBox: `0 0 ${run.width} ${run.height - 30}`, preserveAspectRatio: "xMidYMin meet"}, place);
    for (const edge of run.edges) {
      const group = element("g", {"data-edge": edge.name}, sheet);
      element("title", {}, group, edge.hover);
      element("path", {d: edge.line, fill: "none", stroke: "#000", "stroke-opacity": 0, "stroke-width": 12}, group);
      element("path", {class: "line", d: edge.line, fill: "none", stroke: edge.loop ? "#b0306a" : "#64748b",
        "stroke-width": 1.5, "stroke-dasharray": edge.loose ? "6 4" : "none"}, group);
      const [x, y] = edge.head;
      element("path", {d: `M${x - 4.5} ${y - 8}L${x} ${y}L${x + 4.5} ${y - 8}Z`, fill: edge.loop ? "#b0306a" : "#64748b"}, group);
    }
    for (const vertex of run.operators) {
      const group = element("g", {"data-vertex": vertex.name}, sheet);
      element("title", {}, group, vertex.hover);
      const several = vertex.scope === "replica";
      const shape = {width: vertex.width, height: BOX, rx: vertex.kind === "table" ? 18 : 7, "stroke-width": 1.4};
      if (several) element("rect", {...shape, class: "box", x: vertex.left + 5, y: vertex.top - 5}, group);
      element("rect", {...shape, class: "box", x: vertex.left, y: vertex.top}, group);
      const middle = vertex.left + vertex.width / 2;
      element("text", {x: middle, y: vertex.top + 20, "text-anchor": "middle", "font-size": 13, "font-weight": 600, fill: "#1b2a41"}, group, vertex.title);
      element("text", {x: middle, y: vertex.top + 36, "text-anchor": "middle", "font-size": 11, fill: "#56657c"}, group, vertex.detail);
    }
    for (const vertex of run.operators.filter((o) => o.kind !== "table")) {  // rings above all boxes
      const ring = element("g", {"data-ring": vertex.name, visibility: "hidden"}, sheet);
      const [x, y] = [vertex.left + vertex.width, vertex.top + BOX];
      element("circle", {cx: x, cy: y, r: RING, fill: "#fff", stroke: "#d5dbe5", "stroke-width": 5}, ring);
      element("circle", {class: "share", cx: x, cy: y, r: RING, fill: "none", "stroke-width": 5, pathLength: 100,
        "stroke-dasharray": "0 100", transform: `rotate(-90 ${x} ${y})`}, ring);
      element("text", {class: "percent", x: x + RING + 5, y: y + 4, "font-size": 11, fill: "#1b2a41", stroke: "#fff",
        "stroke-width": 3, "paint-order": "stroke"}, ring);
    }
    for (const edge of run.edges) {  // words above all boxes
      const [x, y] = edge.label;
      element("text", {class: "words", "data-words": edge.name, x, y: y + 4, "text-anchor": "middle", "font-size": 11, "font-weight": 500,
        fill: edge.loop ? "#b0306a" : "#1b2a41", stroke: "#fff", "stroke-width": 6, "stroke-linejoin": "round", "paint-order": "stroke",
        ...(edge.loop ? {transform: `rotate(-90 ${x} ${y})`} : {})}, sheet);
    }
    legend(run);
  }

  function legend(run) {
    const place = document.querySelector("#flowml-graph .legend");
    place.replaceChildren();
    const sign = (words, draw) => {
      const item = document.createElement("li");
      draw(element("svg", {viewBox: "0 0 22 12"}, item));
      item.append(words);
      place.append(item);
    };
    for (const [fill, stroke, words] of Object.values(STATES)) {
      sign(words, (svg) => element("rect", {x: 1, y: 1, width: 20, height: 10, rx: 3, fill, stroke}, svg));
    }
    sign("share of the time", (svg) => element("circle", {cx: 11, cy: 6, r: 4, fill: "none", stroke: "#2e8b57", "stroke-width": 3, "stroke-dasharray": "15 100"}, svg));
    sign("wider: more bytes a second", (svg) => element("path", {d: "M0 6H22", stroke: "#64748b", "stroke-width": 5}, svg));
    if (run.edges.some((edge) => edge.loose)) {
      sign("not sync", (svg) => element("path", {d: "M0 6H22", stroke: "#64748b", "stroke-width": 1.5, "stroke-dasharray": "6 4"}, svg));
    }
    sign("loop through a table", (svg) => element("path", {d: "M0 6H22", stroke: "#b0306a", "stroke-width": 2}, svg));
  }

  const vertices = (name) => document.querySelector(`#flowml-graph [data-vertex="${CSS.escape(name)}"]`);
  const edges = (name) => document.querySelector(`#flowml-graph [data-edge="${CSS.escape(name)}"]`);

  function edgeWords(edge) {
    const late = edge.lag === null ? "" : edge.bound === null ? `lag ${edge.lag}` : `lag ${edge.lag}/${edge.bound}`;
    const flow = edge.bytes_per_second ? `${bytes(edge.bytes_per_second)}/s` : "";
    const found = [late || edge.words, flow].filter((part) => part).join(" · ");
    return edge.loop ? (found || "next step") : found;
  }

  function graph(run) {
    if (drawn !== run.id) {
      skeleton(run);
      drawn = run.id;
    }
    for (const vertex of run.operators) {
      const group = vertices(vertex.name);
      const [fill, stroke] = STATES[vertex.state];
      group.dataset.state = vertex.state;
      for (const box of group.querySelectorAll(".box")) {
        box.setAttribute("fill", vertex.kind === "table" && vertex.state !== "waiting" ? "#fff" : fill);
        box.setAttribute("stroke", stroke);
      }
      const ring = document.querySelector(`#flowml-graph [data-ring="${CSS.escape(vertex.name)}"]`);
      if (ring === null) continue;
      ring.setAttribute("visibility", vertex.share === null ? "hidden" : "visible");
      if (vertex.share !== null) {
        ring.querySelector(".share").setAttribute("stroke-dasharray", `${100 * vertex.share} 100`);
        ring.querySelector(".share").setAttribute("stroke", stroke);
        ring.querySelector(".percent").textContent = percent(vertex.share);
      }
    }
    for (const edge of run.edges) {
      const flow = edge.bytes_per_second || 0;
      const width = flow > 1 ? Math.min(9, 1.5 + Math.max(0, Math.log10(flow) - 3)) : 1.5;
      edges(edge.name).querySelector(".line").setAttribute("stroke-width", width);
      const words = document.querySelector(`#flowml-graph [data-words="${CSS.escape(edge.name)}"]`);
      words.textContent = edgeWords(edge);
    }
  }

  function replicas(run) {
    const rows = run.replicas.map((r) => {
      const row = document.createElement("tr");
      row.className = r.slowness !== null && r.slowness > 1.2 ? "slow" : "";
      const place = {wait: `waits for ${r.within || "others"}`, transfer: "moving values", scheduler: "between windows"}[r.part] || r.within;
      const cells = [r.replica, r.worker.replace(/^[a-z]+:\/\//, ""), r.busy === null ? "–" : number(1000 * r.busy, 3), r.slowness === null ? "–" : `${r.slowness.toFixed(2)} ×`,
        percent(r.wait_share), r.behind || "", place + (r.since !== null && r.since > 1 ? ` for ${duration(r.since)}` : "")];
      for (const cell of cells) row.insertCell().textContent = cell;
      return row;
    });
    document.querySelector("#flowml-replicas tbody").replaceChildren(...rows);
  }

  function events(run) {
    const list = document.querySelector("#flowml-events ol");
    const newest = JSON.stringify([run.id, run.events.length, run.events[0]]);
    if (list.dataset.newest === newest) return;
    list.dataset.newest = newest;
    const items = run.events.map((said) => {
      const item = document.createElement("li");
      item.className = said.level;
      const when = document.createElement("time");
      when.textContent = duration(said.seconds);
      const words = document.createElement("span");
      words.textContent = said.text;
      item.append(when, words);
      return item;
    });
    list.replaceChildren(...items);
  }

  function charts(changes) {
    for (const [name, properties] of Object.entries(changes)) {
      const model = Bokeh.documents[0].get_model_by_name(name);
      if (model !== null) model.setv(properties, {sync: false, check_eq: false});  // not back to the server
    }
  }

  function draw(message) {
    if (message === null) return;
    charts(message.changes);
    const state = message.state;
    for (const link of document.querySelectorAll(".navbar a[href='flowml']")) link.closest("li").classList.add("active");
    const run = state.run;
    if (run === null) return;
    header(run);
    graph(run);
    replicas(run);
    events(run);
  }

  return {draw};
})();
