"use strict";

// The maps of a block from its packed features. Legend: C' inner channels, N positions, G groups of channels.

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function floatsOf(text) {
  return new Float32Array(bytesOf(text).buffer);
}

function featuresOf(packed) {
  const numbers = new Int8Array(bytesOf(packed.numbers).buffer);
  const scales = floatsOf(packed.scales);
  const count = numbers.length / scales.length;
  const values = new Float32Array(numbers.length);
  for (let i = 0; i < numbers.length; i++) values[i] = numbers[i] * scales[Math.floor(i / count)];
  return values;
}

function product(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

/** A block ready for maps: features as numbers, and the sizes that follow from them. */
function unpackBlock(packed) {
  const block = { ...packed, positions: product(packed.shape), groupSize: packed.channels / packed.groups };
  if (!packed.theta) return block;
  block.theta = featuresOf(packed.theta);
  block.phi = packed.phi ? featuresOf(packed.phi) : block.theta;
  block.g = featuresOf(packed.g);
  block.positionsPhi = product(packed.shapePhi);
  block.innerChannels = block.g.length / block.positionsPhi;
  block.groupSize = block.innerChannels / packed.groups;
  if (packed.logDenominators) block.logDenominators = floatsOf(packed.logDenominators);
  if (packed.kernel && packed.kernel.exact && packed.kernel.exact.values) {
    block.table = { ...packed.kernel.exact, values: floatsOf(packed.kernel.exact.values) };
  }
  return block;
}

function flatIndex(position, shape) {
  return position.reduce((index, n, axis) => index * shape[axis] + n, 0);
}

function positionOf(index, shape) {
  const position = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    position.unshift(index % shape[axis]);
    index = Math.floor(index / shape[axis]);
  }
  return position;
}

/** The cell of phi and g that a position was pooled into. */
function positionInPhi(block, position) {
  return position.map((n, axis) => {
    const cells = block.shapePhi[axis] / block.coverPhi[axis]; // along the whole axis, with what the pooling left out
    return Math.min(Math.floor(((n + 0.5) * cells) / block.shape[axis]), block.shapePhi[axis] - 1);
  });
}

/** The channel in which g is strongest at a position, of one group or (group null) of all. */
function strongestChannel(block, position, group) {
  const at = flatIndex(positionInPhi(block, position), block.shapePhi);
  const start = group === null ? 0 : group * block.groupSize;
  const stop = group === null ? block.innerChannels : start + block.groupSize;
  let best = start;
  for (let c = start; c < stop; c++) {
    if (Math.abs(block.g[c * block.positionsPhi + at]) > Math.abs(block.g[best * block.positionsPhi + at])) best = c;
  }
  return best;
}

function interpolated(table, theta, phi) {
  const cell = [theta, phi].map((value, axis) => {
    const [low, high] = table.ranges[axis];
    const place = high > low ? ((value - low) / (high - low)) * (table.size - 1) : 0;
    const lower = Math.max(0, Math.min(table.size - 2, Math.floor(place)));
    return [lower, Math.max(0, Math.min(1, place - lower))];
  });
  const [[i, a], [j, b]] = cell;
  const at = (row, column) => table.values[row * table.size + column];
  return (1 - a) * ((1 - b) * at(i, j) + b * at(i, j + 1)) + a * ((1 - b) * at(i + 1, j) + b * at(i + 1, j + 1));
}

/** The exact f(theta, phi) of a generalized non-local block without what it is where theta · phi = 0. */
function exactFunction(block) {
  const { exact, gamma } = block.kernel;
  if (exact === "dot") return (t, u) => t * u;
  if (exact === "exp") return (t, u) => Math.expm1(t * u);
  if (exact === "rbf") return (t, u) => Math.exp(-gamma * (t * t + u * u)) * Math.expm1(2 * gamma * t * u);
  const f = (t, u) => interpolated(block.table, t, u);
  const atZero = f(0, 0);
  return (t, u) => f(t, u) - (atZero === 0 ? 0 : (f(t, 0) * f(0, u)) / atZero);
}

/** The series of a compact block without p = 0, times the envelopes where it has them. */
function seriesFunction(block) {
  const { coefficients, gamma, envelope } = block.kernel;
  return (t, u) => {
    const base = t * u;
    let value = 0;
    for (let p = coefficients.length - 1; p > 0; p--) value = (value + coefficients[p]) * base;
    return envelope ? value * Math.exp(-gamma * (t * t + u * u)) : value;
  };
}

function weighted(weights, features, positions) {
  const out = new Float64Array(positions);
  for (let c = 0; c < weights.length; c++) {
    const weight = weights[c];
    for (let n = 0; n < positions; n++) out[n] += weight * features[c * positions + n];
  }
  return out;
}

function columnAt(features, positions, at) {
  return Float64Array.from({ length: features.length / positions }, (_, c) => features[c * positions + at]);
}

function nonLocalMap(block, position, view) {
  const row = view === "row";
  const [ours, n] = row ? [block.theta, block.positions] : [block.phi, block.positionsPhi];
  const [theirs, m] = row ? [block.phi, block.positionsPhi] : [block.theta, block.positions];
  const at = row ? flatIndex(position, block.shape) : flatIndex(positionInPhi(block, position), block.shapePhi);
  const reference = columnAt(ours, n, at);
  if (block.pairwise === "concatenation") {
    const half = block.concat.length / 2;
    const parts = [block.concat.slice(0, half), block.concat.slice(half)];
    const [mine, other] = row ? parts : parts.reverse();
    const own = mine.reduce((sum, weight, c) => sum + weight * reference[c], 0);
    return weighted(other, theirs, m).map((value) => Math.max(0, own + value) * block.factor);
  }
  const logits = weighted(reference, theirs, m).map((value) => value * block.factor);
  if (block.pairwise.startsWith("dot_product")) return logits;
  if (!row) return logits.map((value, i) => Math.exp(value - block.logDenominators[i]));
  const peak = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = logits.map((value) => Math.exp(value - peak));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

/**
 * The affinity of a reference element: one map for each channel of its group, one map in all for a non-local block.
 * Channel null takes the strongest of the group, or of all where group is null too.
 */
function affinityMaps(block, position, { view = "row", channel = null, group = null } = {}) {
  const reference = channel === null ? strongestChannel(block, position, group) : channel;
  if (block.kind === "nl") {
    const grid = view === "row" ? { shape: block.shapePhi, cover: block.coverPhi } : { shape: block.shape };
    return { first: 0, reference, ...grid, maps: [nonLocalMap(block, position, view)] };
  }
  const at = flatIndex(position, block.shape);
  const [ours, theirs] = view === "row" ? [block.theta, block.phi] : [block.phi, block.theta];
  const value = ours[reference * block.positions + at];
  const between = block.kind === "cgnl" ? seriesFunction(block) : exactFunction(block);
  const f = view === "row" ? (other) => between(value, other) : (other) => between(other, value);
  const first = Math.floor(reference / block.groupSize) * block.groupSize;
  const maps = [];
  for (let c = first; c < first + block.groupSize; c++) {
    maps.push(Float64Array.from(theirs.subarray(c * block.positions, (c + 1) * block.positions), f));
  }
  return { first, reference, shape: block.shape, maps };
}

/** The terms a2_p phi^p g that add up to z_p of a group: one map for each of its channels. */
function evidenceMaps(block, group, power) {
  const { coefficients, gamma, envelope } = block.kernel;
  const first = group * block.groupSize;
  const factor = coefficients[power] * block.factor;
  const maps = [];
  for (let c = first; c < first + block.groupSize; c++) {
    const start = c * block.positions;
    maps.push(Float64Array.from({ length: block.positions }, (_, n) => {
      const phi = block.phi[start + n];
      return factor * phi ** power * block.g[start + n] * (envelope ? Math.exp(-gamma * phi * phi) : 1);
    }));
  }
  return { first, shape: block.shape, maps };
}

/** What a group made of theta in this sample: y = sum of z_p theta^p. */
function polynomialAt(block, group, theta) {
  const y = block.sums[group].reduceRight((value, z) => value * theta + z, 0);
  return block.kernel.envelope ? y * Math.exp(-block.kernel.gamma * theta * theta) : y;
}

function summed(maps) {
  return maps[0].map((_, n) => maps.reduce((sum, map) => sum + map[n], 0));
}

function peakOf(map) {
  let at = 0;
  for (let n = 1; n < map.length; n++) if (Math.abs(map[n]) > Math.abs(map[at])) at = n;
  return { at, value: map[at] };
}

/** Indices of the maps with the strongest peaks, strongest first. */
function strongestMaps(maps, count) {
  const peaks = maps.map((map) => Math.abs(peakOf(map).value));
  return peaks.map((_, index) => index).sort((a, b) => peaks[b] - peaks[a] || a - b).slice(0, count);
}
