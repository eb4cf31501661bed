"use strict";

const SLOTS = 12;
const TABS = ["affinity", "evidence", "effect"];
const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent);

// The reference is kept as a share of each axis (time, y, x), so that it means the same spot to blocks of any size.
const state = {
  item: 0, tab: "affinity", at: [0.5, 0.5, 0.5], frame: 0, overlay: { block: 0, slot: 0 }, grey: true, opacity: 0.8,
};
let input = null; // of the item on show: frames, pictures, blocks
let cards = []; // by block: the elements and settings of its three cards
let loading = 0;

// The reference and the frames

function reference(block) {
  return block.shape.map((size, axis) =>
    // a share that ends a cell may fall short of it by rounding
    Math.min(size - 1, Math.floor(state.at[3 - block.shape.length + axis] * size + 1e-6)));
}

function moveTo(share) {
  state.at = share.map((value) => Math.max(0, Math.min(1 - 1e-9, value)));
  update();
}

/** Moves the reference by whole cells of the block whose map is on the picture. */
function step(axis, cells) {
  const block = input.blocks[state.overlay.block];
  const position = reference(block);
  const own = axis - (3 - block.shape.length);
  if (own < 0) return;
  const size = block.shape[own];
  const share = [...state.at];
  share[axis] = (Math.max(0, Math.min(size - 1, position[own] + cells)) + 0.5) / size;
  if (axis === 0) state.frame = Math.floor(share[0] * input.frames.length);
  moveTo(share);
}

/** The part of a map that belongs to an input frame: where it starts, for a map with time. */
function startOf(shape, frame) {
  if (shape.length === 2) return 0;
  const time = Math.floor(((2 * frame + 1) * shape[0]) / (2 * input.frames.length));
  return time * shape[1] * shape[2];
}

// What a block shows: maps with a name each, and the strength that counts as full

function affinityTiles(block, card) {
  const { group, channel, view, shown } = card.settings;
  const made = affinityMaps(block, reference(block), { view, channel, group });
  if (block.kind === "nl") {
    return { ...made, tiles: [{ name: "all channels", map: made.maps[0] }] };
  }
  const tiles = strongestMaps(made.maps, SLOTS)
    .map((k) => ({ name: `channel ${made.first + k}`, map: made.maps[k], channel: made.first + k }));
  if (shown !== null && made.maps[shown - made.first]) {
    tiles.unshift({ name: `channel ${shown} (chosen)`, map: made.maps[shown - made.first], channel: shown });
  }
  return { ...made, tiles };
}

function evidenceTiles(block, card) {
  const group = card.settings.evidenceGroup ?? Math.floor(referenceChannel(block, card) / block.groupSize);
  const made = evidenceMaps(block, group, card.settings.power);
  const whole = summed(made.maps);
  const tiles = strongestMaps(made.maps, SLOTS).map((k) => ({ name: `channel ${made.first + k}`, map: made.maps[k] }));
  return { ...made, group, tiles: [{ name: `whole group ${group}`, map: whole, own: true }, ...tiles] };
}

function referenceChannel(block, card) {
  const { channel, group } = card.settings;
  return channel ?? strongestChannel(block, reference(block), group);
}

function withPeaks(shown) {
  const strength = (tiles) => tiles.reduce((most, tile) => Math.max(most, Math.abs(tile.peak.value)), 0);
  for (const tile of shown.tiles) tile.peak = peakOf(tile.map);
  const common = strength(shown.tiles.filter((tile) => !tile.own));
  for (const tile of shown.tiles) tile.full = tile.own ? strength([tile]) : common;
  return shown;
}

// Building the cards of a block; updating only changes what is in them, so that the focus stays

function choice(label, options, onChange) {
  const select = element("select", {}, ...options.map(([value, text]) => element("option", { value }, text)));
  select.addEventListener("change", () => onChange(select.value));
  return element("label", {}, label, select);
}

function numberField(label, most, onChange) {
  const field = element("input", { type: "number", min: 0, max: most, placeholder: "strongest" });
  field.addEventListener("change", () => {
    const value = field.value === "" ? null : Math.max(0, Math.min(most, Math.round(Number(field.value))));
    field.value = value ?? "";
    onChange(value);
  });
  return { label: element("label", {}, label, field), field };
}

function mapButtons(k) {
  return Array.from({ length: SLOTS + 1 }, (_, slot) => {
    const canvas = element("canvas", { role: "img" });
    const button = element("button", { type: "button", className: "map", "aria-pressed": "false" }, canvas, element("span"));
    button.addEventListener("click", () => {
      const { channel } = cards[k].shown.tiles[slot];
      if (channel !== undefined) {
        cards[k].showChannel(channel);
      } else {
        state.overlay = { block: k, slot };
        update();
      }
    });
    return button;
  });
}

function cardOf(block, ...content) {
  return element("section", { className: "block" },
    element("h3", {}, `${block.network} · ${block.path || "block"}`),
    element("p", { className: "dim" }, `${block.words}; ${block.channels} channels, ${block.shape.join(" × ")} positions`),
    ...content);
}

function groupOptions(block, automatic) {
  return [["", automatic], ...Array.from({ length: block.groups }, (_, k) => [String(k), `group ${k}`])];
}

function affinityCard(block, card, k) {
  const { settings } = card;
  const honest = element("p", { className: "honest" }, block.statements.row);
  if (!block.theta) return cardOf(block, honest);
  card.honest = honest;
  const controls = element("div", { className: "controls" });
  if (block.kind !== "nl") {
    const reference = numberField("reference channel", block.innerChannels - 1, (value) => {
      settings.channel = value;
      if (value !== null) groups.querySelector("select").value = "";
      settings.group = value === null ? settings.group : null;
      update();
    });
    const groups = choice("group", groupOptions(block, "of the reference channel"), (value) => {
      settings.group = value === "" ? null : Number(value);
      settings.channel = null;
      reference.field.value = "";
      update();
    });
    card.showChannel = (value) => {
      settings.shown = value;
      shown.field.value = value ?? "";
      const group = value === null ? null : Math.floor(value / block.groupSize);
      const own = settings.channel !== null && Math.floor(settings.channel / block.groupSize) === group;
      if (group !== null && block.groups > 1 && !own) {
        Object.assign(settings, { channel: null, group });
        reference.field.value = "";
        groups.querySelector("select").value = String(group);
      }
      state.overlay = { block: k, slot: 0 };
      update();
    };
    const shown = numberField("map of channel", block.innerChannels - 1, card.showChannel);
    if (block.groups > 1) controls.append(groups);
    controls.append(reference.label, shown.label);
  }
  controls.append(choice("view", [["row", "the reference receives from"], ["column", "the reference gives to"]], (value) => {
    settings.view = value;
    update();
  }));
  card.affinityButtons = mapButtons(k);
  card.affinitySays = element("p", { className: "dim" });
  return cardOf(block, honest, controls, card.affinitySays,
    element("div", { className: "maps" }, ...card.affinityButtons), roundedNotes(block));
}

function roundedNotes(block) {
  return element("details", { className: "dim" }, element("summary", {}, "Rounding"),
    ...block.notes.map((note) => element("p", {}, note)));
}

function evidenceCard(block, card, k) {
  if (block.kind !== "cgnl") {
    return cardOf(block, element("p", { className: "honest" }, block.kind === "residual"
      ? "This block has no affinity to show, so there is nothing to add up."
      : "Only a compact block gathers the same sums for all references. This block gathers other amounts for each reference: see Affinity."));
  }
  const { settings } = card;
  const powers = block.kernel.coefficients.map((a2, p) => [a2, p]).filter(([a2]) => a2 !== 0).map(([, p]) => p);
  settings.power = powers.find((p) => p > 0) ?? 0;
  const controls = element("div", { className: "controls" });
  if (block.groups > 1) {
    controls.append(choice("group", groupOptions(block, "of the reference"), (value) => {
      settings.evidenceGroup = value === "" ? null : Number(value);
      update();
    }));
  }
  const power = choice("power p", powers.map((p) => [String(p), String(p)]), (value) => {
    settings.power = Number(value);
    update();
  });
  power.querySelector("select").value = String(settings.power);
  if (powers.length > 1) controls.append(power);
  card.evidenceButtons = mapButtons(k);
  card.evidenceSays = element("p", {});
  card.curve = element("div");
  const averaged = block.averagedEvidence ? [element("p", { className: "honest" }, block.averagedEvidence)] : [];
  return cardOf(block, ...averaged, controls, card.evidenceSays, card.curve,
    element("div", { className: "maps" }, ...card.evidenceButtons), roundedNotes(block));
}

function effectCard(block) {
  if (!block.effect) return cardOf(block, element("p", { className: "dim" }, "The effect was not measured."));
  const { names, probabilities } = block.effect;
  // the only group of a block is the block
  const groups = probabilities.length > 3 ? probabilities.length - 2 : 0;
  const rows = ["with the block", "bypassed", ...Array.from({ length: groups }, (_, k) => `without group ${k}`)];
  const body = element("tbody");
  const fill = (column) => {
    const whole = probabilities[0][column];
    body.replaceChildren(...rows.map((name, k) => {
      const value = probabilities[k][column];
      const bar = element("div", { "aria-hidden": "true" });
      bar.style.width = percent(value).replace(" ", "");
      const points = (100 * (value - whole)).toFixed(2);
      const moved = Number(points) === 0 ? "0.00" : points > 0 ? `+${points}` : points.replace("-", "\u2212");
      return element("tr", {}, element("th", { scope: "row" }, name), element("td", { className: "track" }, bar),
        element("td", { className: "number" }, percent(value)),
        element("td", { className: "number" }, k ? moved : ""));
    }));
  };
  fill(0);
  const classes = choice("probability of", names.map((name, k) => [String(k), name]), (value) => fill(Number(value)));
  const most = Math.max(...probabilities.flatMap((row) => row.map((value, column) => Math.abs(value - probabilities[0][column]))));
  const hardly = most >= 0.005 ? [] : [element("p", { className: "honest" },
    `No probability here moves by more than ${(100 * most).toFixed(2)} percentage points: this block hardly changes this prediction, whatever its maps look like.`)];
  return cardOf(block, ...hardly, element("div", { className: "controls" }, classes),
    element("table", {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col", colSpan: 2 }, "the network"),
        ...["probability", "change"].map((text) => element("th", { scope: "col" }, text)))),
      body),
    element("p", { className: "dim" }, "Changes are in percentage points."
      + (groups ? " Leaving out all groups together is the bypass, but their single changes do not add up to its change, because the rest of the network is not linear." : "")));
}

function buildCards() {
  cards = input.blocks.map(() => ({
    settings: { group: null, channel: null, view: "row", shown: null, evidenceGroup: null, power: 1 },
  }));
  const build = { affinity: affinityCard, evidence: evidenceCard, effect: effectCard };
  for (const tab of TABS) {
    const panel = byId(`panel-${tab}`);
    panel.replaceChildren(panel.firstElementChild, ...input.blocks.map((block, k) => build[tab](block, cards[k], k)));
  }
}

// Drawing

function aspect(width) {
  return [width, Math.max(1, Math.round((width * input.height) / input.width))];
}

function sized(canvas, width) {
  const [w, h] = aspect(width);
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
}

function drawTiles(buttons, shown, k) {
  buttons.forEach((button, slot) => {
    const tile = shown.tiles[slot];
    button.hidden = !tile;
    if (!tile) return;
    const [canvas, caption] = button.children;
    const where = positionOf(tile.peak.at, shown.shape);
    sized(canvas, 132);
    paint(canvas, input.pictures[state.frame], {
      grey: true, map: tile.map, start: startOf(shown.shape, state.frame), shape: shown.shape, cover: shown.cover,
      peak: tile.full, strength: 0.85,
    });
    canvas.setAttribute("aria-label", `${tile.name}: strongest at ${inWords(where)}, ${number(tile.peak.value)}`);
    caption.textContent = `${tile.name}: ${number(tile.peak.value)}`;
    button.setAttribute("aria-pressed", String(state.overlay.block === k && state.overlay.slot === slot));
  });
}

function inWords(position) {
  const [row, column] = position.slice(-2);
  const time = position.length === 3 ? `time ${position[0]}, ` : "";
  return `${time}row ${row}, column ${column}`;
}


function tilesOf(tab, block, card) {
  if (tab === "evidence" && block.kind === "cgnl") return withPeaks(evidenceTiles(block, card));
  return block.theta ? withPeaks(affinityTiles(block, card)) : null;
}

function describeEvidence(block, card, shown) {
  const sums = block.sums[shown.group];
  const terms = sums.map((z, p) => `z${"₀₁₂₃₄₅₆₇₈₉"[p] ?? p} = ${number(z)}`).filter((_, p) => block.kernel.coefficients[p] !== 0);
  card.evidenceSays.textContent = `Group ${shown.group}: ${terms.join(", ")}. The maps show p = ${card.settings.power}, on one scale; the whole group on its own.`;
  const channel = referenceChannel(block, card);
  const own = Math.floor(channel / block.groupSize) === shown.group;
  const theta = block.theta[channel * block.positions + flatIndex(reference(block), block.shape)];
  const [low, high] = block.thetaRange[shown.group];
  card.curve.replaceChildren(curveOf((value) => polynomialAt(block, shown.group, value), [low, high], own ? theta : null,
    `The curve of group ${shown.group}: y is ${number(polynomialAt(block, shown.group, low))} at theta ${number(low)} and ${number(polynomialAt(block, shown.group, high))} at ${number(high)}`));
}

function describeAffinity(block, card, shown) {
  card.honest.textContent = block.statements[card.settings.view];
  if (block.kind === "nl") {
    const [low, high] = shown.maps[0].reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
    card.affinitySays.textContent = `Reference: ${inWords(reference(block))}. One map for all channels, from ${number(low)} to ${number(high)}.`;
    return;
  }
  const group = Math.floor(shown.reference / block.groupSize);
  card.affinitySays.textContent = `Reference: ${inWords(reference(block))}, channel ${shown.reference} (group ${group}). `
    + `The ${Math.min(SLOTS, shown.maps.length)} strongest of the group's ${shown.maps.length} channels, on one scale; other groups are not related to it.`;
}

function drawPicture(shown, block) {
  const canvas = byId("picture");
  const tile = shown && (shown.tiles[state.overlay.slot] ?? shown.tiles[0]);
  const paintFrame = (target, frame) => {
    paint(target, input.pictures[frame], {
      grey: state.grey, map: tile && tile.map, start: shown ? startOf(shown.shape, frame) : 0, shape: shown && shown.shape,
      cover: shown && shown.cover, peak: tile && tile.full, strength: state.opacity,
    });
    const position = reference(block);
    const elsewhere = position.length === 3 && startOf(block.shape, frame) !== position[0] * block.shape[1] * block.shape[2];
    if (!elsewhere || target === canvas) outline(target, ...position.slice(-2), block.shape, elsewhere);
  };
  sized(canvas, Math.max(480, Math.min(960, input.width)));
  paintFrame(canvas, state.frame);
  document.querySelectorAll("#film button").forEach((button, frame) => {
    sized(button.firstChild, 112);
    paintFrame(button.firstChild, frame);
    button.setAttribute("aria-current", String(frame === state.frame));
    if (frame === state.frame) byId("film").scrollLeft = button.offsetLeft - byId("film").clientWidth / 2;
  });
  const name = `${block.network} · ${block.path || "block"}`;
  const where = inWords(reference(block));
  canvas.setAttribute("aria-label", `${index[state.item].name}; reference at ${where}; map of ${name}`);
  const says = !shown ? "This block has no affinity to show." : `${state.tab === "evidence" && block.kind === "cgnl" ? "Evidence" : "Affinity"}, ${name}, ${tile.name}: `
    + `reference at ${where} of ${block.shape.slice(-2).join(" × ")}; strongest at ${inWords(positionOf(tile.peak.at, shown.shape))} of ${shown.shape.slice(-2).join(" × ")}, ${number(tile.peak.value)}.`;
  byId("status").textContent = says;
  byId("place").hidden = !input.toFile;
  if (input.toFile) byId("at").textContent = placeInFile();
  drawLegend(tile);
}

/** The reference in pixels of the file as ``--at`` reads it: x,y and of a video the frame. */
function placeInFile() {
  const [scaleX, scaleY, left, top] = input.toFile;
  const [, y, x] = state.at;
  // towards the middle, so that a place at the edge stays inside
  const rounded = (value, share) => (share < 0.5 ? Math.ceil(10 * value) : Math.floor(10 * value)) / 10;
  const place = [rounded((x * input.width + left) / scaleX, x), rounded((y * input.height + top) / scaleY, y)];
  return (input.frames.length > 1 ? [...place, Math.floor(state.at[0] * input.frames.length)] : place).join(",");
}

function drawLegend(tile) {
  byId("legend").hidden = !tile;
  if (!tile) return;
  const signed = tile.map.some((value) => value < 0);
  byId("low").textContent = signed ? number(-tile.full) : "0";
  byId("high").textContent = number(tile.full);
  const low = signed ? -tile.full : 0;
  const stops = Array.from({ length: 41 }, (_, i) =>
    `rgba(${colourOf(low + (i / 40) * (tile.full - low), tile.full, state.opacity).join(", ")})`);
  byId("bar").style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
}

function update() {
  if (!input) return;
  for (const tab of TABS) {
    byId(`panel-${tab}`).hidden = tab !== state.tab;
    byId(`tab-${tab}`).setAttribute("aria-selected", String(tab === state.tab));
    byId(`tab-${tab}`).tabIndex = tab === state.tab ? 0 : -1;
  }
  byId("frame").value = state.frame;
  byId("frame-number").textContent = `${state.frame} (0 to ${input.frames.length - 1})`;
  input.blocks.forEach((block, k) => {
    const card = cards[k];
    card.shown = tilesOf(state.tab, block, card);
    if (state.tab === "affinity" && block.theta) {
      describeAffinity(block, card, card.shown);
      drawTiles(card.affinityButtons, card.shown, k);
    } else if (state.tab === "evidence" && block.kind === "cgnl") {
      describeEvidence(block, card, card.shown);
      drawTiles(card.evidenceButtons, card.shown, k);
    }
  });
  drawPicture(cards[state.overlay.block].shown, input.blocks[state.overlay.block]);
}

// Inputs

function verdicts(entry) {
  return Object.entries(entry.predictions).filter(([, ranked]) => ranked.length).map(([network, ranked]) => {
    const listed = ranked.find(([name]) => name === entry.truth);
    const ofTruth = entry.truthProbability[network] ?? (listed ? listed[1] : 0);
    return { network, ranked, right: ranked[0][0] === entry.truth, wrongBy: ranked[0][1] - ofTruth };
  });
}

/** By how much the truth lost to the prediction in the worst of the networks; 0 where all are right. */
function mistake(entry) {
  if (entry.truth === null) return 0;
  return Math.max(0, ...verdicts(entry).filter(({ right }) => !right).map(({ wrongBy }) => wrongBy));
}

function showPredictions(entry) {
  const parts = verdicts(entry).map(({ network, ranked, right }) => element("div", {},
    element("p", {}, `${network}: `,
      element("strong", { className: entry.truth === null ? "" : right ? "right" : "wrong" }, ranked[0][0]),
      ` ${percent(ranked[0][1])}`,
      element("span", { className: "unseen" }, entry.truth === null ? "" : right ? " (right)" : " (wrong)"),
      ranked.length > 1 ? element("span", { className: "dim" },
        `; then ${ranked.slice(1, 5).map(([name, value]) => `${name} ${percent(value)}`).join(", ")}`) : "")));
  byId("predictions").hidden = parts.length === 0;
  byId("predictions").replaceChildren(element("p", {}, entry.truth === null ? "The true class is not known." : `True class: ${entry.truth}`), ...parts);
}

function buildStrip() {
  byId("inputs").hidden = index.length < 2;
  const mistakes = index.map((entry, k) => [mistake(entry), k]).filter(([size]) => size > 0).sort((a, b) => b[0] - a[0]);
  byId("order-line").hidden = mistakes.length === 0 || index.length < 2;
  const order = byId("order").value === "mistakes" ? mistakes.map(([, k]) => k) : index.map((_, k) => k);
  byId("strip").replaceChildren(...order.map((k) => {
    const entry = index[k];
    const wrong = mistake(entry) > 0;
    const button = element("button", { type: "button", title: entry.name, "aria-current": String(k === state.item) },
      element("img", { src: entry.thumbnail, alt: "" }),
      element("span", { className: entry.truth === null ? "" : wrong ? "wrong" : "right" }, entry.name),
      element("span", { className: "unseen" }, entry.truth === null ? "" : wrong ? " (a wrong prediction)" : " (right)"));
    button.addEventListener("click", () => show(k));
    return element("li", {}, button);
  }));
  return order;
}

async function show(k) {
  const turn = ++loading;
  const packed = JSON.parse(byId(`item-${k}`).textContent);
  const pictures = await Promise.all(packed.frames.map(loadPicture));
  if (turn !== loading) return; // another input was chosen meanwhile
  input = { ...packed, pictures, blocks: packed.blocks.map(unpackBlock) };
  Object.assign(state, { item: k, frame: Math.floor(input.frames.length / 2), overlay: { block: 0, slot: 0 } });
  if (input.start) Object.assign(state, { at: input.start, frame: Math.floor(input.start[0] * input.frames.length) });
  const video = input.frames.length > 1;
  byId("item-name").textContent = index[k].name;
  byId("video").hidden = byId("help-video").hidden = !video;
  byId("frame").max = input.frames.length - 1;
  byId("film").replaceChildren(...(video ? input.frames : []).map((_, frame) => {
    const button = element("button", { type: "button" }, element("canvas", {}), `frame ${frame}`);
    button.addEventListener("click", () => { state.frame = frame; update(); });
    return element("li", {}, button);
  }));
  document.querySelectorAll("#strip button").forEach((button) => button.setAttribute("aria-current", "false"));
  buildStrip();
  showPredictions(index[k]);
  buildCards();
  update();
}

// Mouse and keys

function pointAt(event) {
  const box = byId("picture").getBoundingClientRect();
  const time = (state.frame + 0.5) / input.frames.length;
  moveTo([time, (event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width]);
}

byId("picture").addEventListener("pointerdown", (event) => input && pointAt(event));
byId("picture").addEventListener("pointermove", (event) => input && event.buttons === 1 && event.pointerType === "mouse" && pointAt(event));
byId("picture").addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [2, -1], ArrowRight: [2, 1], ArrowUp: [1, -1], ArrowDown: [1, 1], PageUp: [0, -1], PageDown: [0, 1] };
  if (!input || !moves[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  step(...moves[event.key]);
});
byId("tabs").addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: -1, ArrowRight: 1 };
  const last = TABS.length - 1;
  const now = TABS.indexOf(state.tab);
  const next = event.key === "Home" ? 0 : event.key === "End" ? last : moves[event.key] && (now + moves[event.key] + TABS.length) % TABS.length;
  if (next === undefined) return;
  event.preventDefault();
  selectTab(TABS[next]);
  byId(`tab-${TABS[next]}`).focus();
});

function selectTab(tab) {
  state.tab = tab;
  state.overlay.slot = 0;
  update();
}

for (const tab of TABS) byId(`tab-${tab}`).addEventListener("click", () => selectTab(tab));
byId("frame").addEventListener("input", () => { state.frame = Number(byId("frame").value); update(); });
byId("grey").addEventListener("change", () => { state.grey = byId("grey").checked; update(); });
byId("opacity").addEventListener("input", () => { state.opacity = Number(byId("opacity").value) / 100; update(); });
byId("order").addEventListener("change", () => {
  const order = buildStrip();
  if (order.length && !order.includes(state.item)) show(order[0]);
});

show(0);
