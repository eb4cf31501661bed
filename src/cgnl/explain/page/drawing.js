"use strict";

// Elements, colours and canvases. Orange stands for positive values and blue for negative ones; 0 is transparent.

const POSITIVE = [230, 97, 0];
const NEGATIVE = [30, 100, 210];

/** An element with properties (``aria-`` and ``data-`` names and ``role`` as attributes) and children. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 0.001 && size < 10000 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  return text.replaceAll("-", "\u2212");
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

/** The colour of a value: red, green and blue up to 255 and alpha up to 1; ``peak`` is the value of full strength. */
function colourOf(value, peak, strength) {
  const alpha = peak > 0 ? Math.min(1, Math.abs(value) / peak) ** 0.8 : 0;
  return [...(value < 0 ? NEGATIVE : POSITIVE), alpha * strength];
}

/** A map's cells as an image of one pixel a cell. */
function cellsOf(map, start, height, width, peak, strength) {
  const canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let n = 0; n < width * height; n++) {
    const [red, green, blue, alpha] = colourOf(map[start + n], peak, strength);
    image.data.set([red, green, blue, Math.round(255 * alpha)], 4 * n);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** A loaded frame in colour and in grey. */
async function loadPicture(source) {
  const colour = element("img", { src: source });
  await colour.decode();
  const grey = element("canvas", { width: colour.naturalWidth, height: colour.naturalHeight });
  const context = grey.getContext("2d", { willReadFrequently: true });
  context.drawImage(colour, 0, 0);
  const image = context.getImageData(0, 0, grey.width, grey.height);
  for (let i = 0; i < image.data.length; i += 4) {
    image.data.fill(0.299 * image.data[i] + 0.587 * image.data[i + 1] + 0.114 * image.data[i + 2], i, i + 3);
  }
  context.putImageData(image, 0, 0);
  return { colour, grey };
}

/**
 * Draws a picture (in grey where asked for) and over it the part of a map that belongs to it; ``cover`` is the share of
 * each axis that the map's cells cover, from the upper left: all of it where left out.
 */
function paint(canvas, picture, { grey, map, start, shape, cover, peak, strength }) {
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.drawImage(grey ? picture.grey : picture.colour, 0, 0, canvas.width, canvas.height);
  if (!map) return;
  const [height, width] = shape.slice(-2);
  context.imageSmoothingEnabled = false;
  const [down, across] = cover ? cover.slice(-2) : [1, 1];
  const cells = cellsOf(map, start, height, width, peak, strength);
  context.drawImage(cells, 0, 0, canvas.width * across, canvas.height * down);
}

/** Outlines the cell at a row and column of a feature map; dashed where it lies in another frame. */
function outline(canvas, row, column, shape, elsewhere) {
  const context = canvas.getContext("2d");
  const [height, width] = [canvas.height / shape.at(-2), canvas.width / shape.at(-1)];
  const thickness = Math.max(1.5, canvas.width / 250);
  for (const [colour, widen] of [["#000", 2], ["#fff", 1]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness * widen;
    context.setLineDash(elsewhere ? [3 * thickness, 3 * thickness] : []);
    context.strokeRect(column * width, row * height, width, height);
  }
}

/** A curve of y over theta, with the range that theta took and the reference's theta marked. */
function curveOf(f, [low, high], reference, label) {
  const [width, height, left, top, bottom] = [420, 200, 62, 12, 40];
  const margin = 0.25 * (high - low || 1);
  const range = [low - margin, high + margin];
  const points = Array.from({ length: 121 }, (_, i) => range[0] + (i / 120) * (range[1] - range[0]));
  const values = points.map(f);
  const [least, most] = [Math.min(0, ...values), Math.max(0, ...values)];
  const x = (theta) => left + ((theta - range[0]) / (range[1] - range[0])) * (width - left - 8);
  const y = (value) => top + ((most - value) / (most - least || 1)) * (height - top - bottom);
  const text = (content, attributes) => drawn("text", attributes, content);
  const path = points.map((theta, i) => `${i ? "L" : "M"}${x(theta).toFixed(1)} ${y(values[i]).toFixed(1)}`).join("");
  const floor = height - bottom;
  return drawn("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img", "aria-label": label },
    drawn("rect", { x: x(low), y: top, width: x(high) - x(low), height: floor - top, fill: "currentColor", opacity: 0.1 }),
    drawn("line", { x1: left, x2: width - 8, y1: y(0), y2: y(0), stroke: "currentColor", opacity: 0.5 }),
    drawn("path", { d: path, fill: "none", stroke: "rgb(230, 97, 0)", "stroke-width": 2.5 }),
    ...(reference === null ? [] : [
      drawn("circle", { cx: x(reference), cy: y(f(reference)), r: 5, fill: "currentColor" }),
    ]),
    text(number(most), { x: left - 6, y: top + 10, "text-anchor": "end" }),
    text(number(least), { x: left - 6, y: floor, "text-anchor": "end" }),
    text("y", { x: 6, y: (top + floor) / 2 }),
    text(number(low), { x: x(low), y: floor + 15, "text-anchor": "middle" }),
    text(number(high), { x: x(high), y: floor + 15, "text-anchor": "middle" }),
    text("θ (shaded: the range it took; dot: the reference)", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }));
}
