// Runs the model in the browser: face detection by MTCNN, alignment and
// classification as in faces.py, face_crops.py and predict.py, whose names
// these functions have. Images are canvases; maps between them are DOMMatrix.
import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;  // threads need headers that static hosts lack
const model = JSON.parse(document.querySelector("#model").textContent);
const {
  SIZES, THRESHOLDS, FINAL_THRESHOLD, MIN_FACE, CELL, STRIDE, PYRAMID_FACTOR,
  SHORTEST, LONGEST, BORDER, TURNS, UPRIGHT, NEAR, SQUARE, SMALL, MAX_FACES,
  MAX_BARS,
} = model.constants;
const MAX_SIDE = 2560;  // of photos; phones have little memory
const sessions = {};

globalThis.predictPhoto = async (file) => {
  const {photo, shrink} = await open(file);
  const found = (await findCrops(photo)).slice(0, MAX_FACES);
  if (!found.length) return [];
  const crops = found.map(({crop}) => asTrained(crop));
  const {probabilities} = await run("model", crops);
  return found.map(({box}, i) => {
    const shares = [...rowOf(probabilities, i)].map((share, c) => [share, c]);
    return {
      box: box && box.map((edge) => edge * shrink),
      bars: shares.sort(([a], [b]) => b - a).slice(0, MAX_BARS).map(
        ([share, c]) => ({name: model.classes[c], share, text: percent(share)})),
      crop: crops[i].toDataURL(),
    };
  });
};

function percent(share) {
  if (share < 0.005) return "<1%";
  if (share >= 0.995 && share < 1) return ">99%";
  return `${Math.round(100 * share)}%`;
}

// A photo upright and on white, and by how much its sides were divided.
async function open(file) {
  const image = await createImageBitmap(file).catch(() => {
    throw Error("The photo cannot be read: it is damaged, or of a format that"
      + " this browser does not know.");
  });
  const longest = Math.max(image.width, image.height);
  const shrink = Math.max(1, longest / MAX_SIDE);
  const photo = draw(image.width / shrink, image.height / shrink, (pen) => {
    pen.scale(1 / shrink, 1 / shrink);
    pen.drawImage(image, 0, 0);
  }, "white");
  return {photo, shrink};
}

function draw(width, height, paint, background = "black") {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = background;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  paint(pen);
  return canvas;
}

async function findCrops(photo) {
  const {image_size: size, template} = model;
  const found = template ? await detect(photo) : [];
  if (!template || isCrop(photo, found)) {
    const side = Math.min(photo.width, photo.height);
    const left = Math.floor((photo.width - side) / 2);
    const top = Math.floor((photo.height - side) / 2);
    return [{box: null, crop: draw(size, size, (pen) =>
      pen.drawImage(photo, left, top, side, side, 0, 0, size, size))}];
  }
  const targets = template.map(([x, y]) => [x * size, y * size]);
  return found.map(({box, points}) =>
    ({box, crop: warp(photo, similarity(targets, points), size)}));
}

// Whether a picture is used whole: it shows one face, cut out as in training.
function isCrop({width, height}, found) {
  const longest = Math.max(width, height);
  if (longest > SQUARE * Math.min(width, height)) return false;
  if (model.searches) return !found.length;
  if (!found.length) return longest <= SMALL;
  const distances = found[0].points.map(([x, y], i) => Math.hypot(
    x / width - model.template[i][0], y / height - model.template[i][1]));
  return distances.reduce((a, b) => a + b) / distances.length < NEAR;
}

// The region and the colours that the model was trained on.
function asTrained(crop) {
  const size = crop.width, [top, left, bottom, right] = model.region;
  return draw(size, size, (pen) => {
    pen.drawImage(crop, left * size, top * size, (right - left) * size,
      (bottom - top) * size, 0, 0, size, size);
    if (!model.grey) return;
    const image = pen.getImageData(0, 0, size, size), {data} = image;
    for (let i = 0; i < data.length; i += 4) {
      const [red, green, blue] = data.subarray(i, i + 3);
      data.fill(0.299 * red + 0.587 * green + 0.114 * blue, i, i + 3);
    }
    pen.putImageData(image, 0, 0);
  });
}

// The outputs of a network for images of one size.
async function run(name, images) {
  sessions[name] ??= ort.InferenceSession.create(`${name}.onnx`);
  const session = await sessions[name], [{width, height}] = images;
  const data = new Uint8Array(images.length * width * height * 3);
  let place = 0;
  for (const image of images) {
    const pen = image.getContext("2d");
    pen.getImageData(0, 0, width, height).data.forEach((value, i) => {
      if (i % 4 < 3) data[place++] = value;  // without alpha
    });
  }
  const shape = [images.length, height, width, 3];
  return session.run({images: new ort.Tensor("uint8", data, shape)});
}

function rowOf({data, dims}, i) {
  const width = data.length / dims[0];
  return data.subarray(i * width, (i + 1) * width);
}

async function detect(photo) {
  const {width, height} = photo;
  const shrink = Math.max(Math.min(1, Math.min(width, height) / SHORTEST),
    Math.max(width, height) / LONGEST);
  const sides = [width, height].map((side) =>
    Math.max(1, Math.round(side / shrink)) + 2 * BORDER);
  for (const angle of TURNS) {
    const turn = Math.PI * angle / 180;
    const [cos, sin] = [Math.cos(turn), Math.sin(turn)].map(Math.abs);
    const across = Math.ceil(cos * sides[0] + sin * sides[1]);
    const down = Math.ceil(sin * sides[0] + cos * sides[1]);
    const there = new DOMMatrix().translate(across / 2, down / 2)
      .rotate(-angle).translate(-sides[0] / 2, -sides[1] / 2)
      .translate(BORDER, BORDER).scale(1 / shrink);
    const turned = draw(across, down, (pen) => {
      pen.setTransform(there);
      pen.drawImage(photo, 0, 0);
    });
    const found = await cascade(turned);
    if (found.length) {
      const faces = found.map((face) => moved(there.inverse(), face));
      const tall = ({box}) => box[3] - box[1];
      return faces.sort((a, b) => tall(b) - tall(a));
    }
  }
  return [];
}

async function cascade(image) {
  let found = await propose(image);
  for (const name of ["rnet", "onet"]) {
    found = await refine(name, image, found.map(({box}) => {
      const [left, top, side] = square(box), scale = side / SIZES[name];
      return new DOMMatrix([scale, 0, 0, scale, left, top]);
    }));
    found = suppress(found, THRESHOLDS[name], 0.7, name === "onet");
  }
  const targets = UPRIGHT.map((xy) => xy.map((x) => x * SIZES.onet));
  found = await refine("onet", image, found.map(({points}) =>
    similarity(targets, points)));
  return suppress(found, FINAL_THRESHOLD, 0.5, true);
}

async function propose(image) {
  const found = [];
  let scale = CELL / MIN_FACE;
  while (Math.min(image.width, image.height) * scale >= CELL) {
    const level = draw(image.width * scale, image.height * scale, (pen) =>
      pen.drawImage(image, 0, 0, pen.canvas.width, pen.canvas.height));
    const {faces} = await run("pnet", [level]);
    const [, height, width, count] = faces.dims, here = [];
    for (let i = 0; i < height * width; i++) {
      const out = faces.data.subarray(i * count, (i + 1) * count);
      const score = sigmoid(out[0]);
      if (score <= THRESHOLDS.pnet) continue;
      const x = STRIDE * (i % width), y = STRIDE * Math.floor(i / width);
      const box = [x, y, x + CELL, y + CELL].map((edge, k) =>
        (edge + CELL * out[k + 1]) / scale);
      here.push({box, score});
    }
    found.push(...suppress(here, 0, 0.5, false));
    scale *= PYRAMID_FACTOR;
  }
  return suppress(found, 0, 0.7, false);
}

// Runs a network on squares of an image, given as maps from the square to it.
async function refine(name, image, maps) {
  if (!maps.length) return [];
  const size = SIZES[name];
  const patches = maps.map((map) => warp(image, map, size, false));
  const {faces} = await run(name, patches);
  return maps.map((map, i) => {
    const out = [...rowOf(faces, i)];
    const box = [0, 0, 1, 1].map((edge, k) => size * (edge + out[k + 1]));
    const points = out.slice(5, 10).map((x, k) => [size * x, size * out[10 + k]]);
    return moved(map, {box, points, score: sigmoid(out[0])});
  });
}

// Cuts a square out of an image; beyond the image its border is repeated.
function warp(image, map, size, repeat = true) {
  return draw(size, size, (pen) => {
    pen.setTransform(map.inverse());
    const {width, height} = image, far = repeat ? width + height : 0;
    const spans = (side) => [[0, side, 0, side],
      ...(far ? [[0, 1, -far, far], [side - 1, 1, side, far]] : [])];
    for (const [y, h, top, tall] of spans(height).reverse())
      for (const [x, w, left, wide] of spans(width).reverse())
        pen.drawImage(image, x, y, w, h, left, top, wide, tall);
  });
}

// The rotation, scaling and shift that fits points to targets best.
function similarity(points, targets) {
  const mean = (list, k) => list.reduce((sum, p) => sum + p[k], 0) / list.length;
  const [px, py] = [mean(points, 0), mean(points, 1)];
  const [tx, ty] = [mean(targets, 0), mean(targets, 1)];
  let real = 0, imaginary = 0, square = 0;
  points.forEach(([x, y], i) => {
    const [a, b] = [x - px, y - py];
    const [c, d] = [targets[i][0] - tx, targets[i][1] - ty];
    real += a * c + b * d;
    imaginary += a * d - b * c;
    square += a * a + b * b;
  });
  const [cos, sin] = [real / square, imaginary / square];
  return new DOMMatrix([cos, sin, -sin, cos,
    tx - cos * px + sin * py, ty - sin * px - cos * py]);
}

// A face mapped by a similarity; its box stays upright.
function moved(map, {box, points, score}) {
  const at = (x, y) => {
    const point = map.transformPoint({x, y});
    return [point.x, point.y];
  };
  const [x, y] = at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2);
  const scale = Math.hypot(map.a, map.b) / 2;
  const [w, h] = [scale * (box[2] - box[0]), scale * (box[3] - box[1])];
  return {box: [x - w, y - h, x + w, y + h],
    points: points.map((point) => at(...point)), score};
}

// Left, top and side of a box grown to a square of its longer side.
function square([left, top, right, bottom]) {
  const side = Math.max(right - left, bottom - top);
  return [(left + right - side) / 2, (top + bottom - side) / 2, side];
}

// Non-maximum suppression, see `faces._kept`.
function suppress(found, threshold, overlap, nested) {
  const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
  const kept = [];
  const sorted = found.filter(({score}) => score > threshold)
    .sort((a, b) => b.score - a.score);
  for (const face of sorted) {
    const covered = kept.some(({box}) => {
      const [left, top] = [0, 1].map((k) => Math.max(box[k], face.box[k]));
      const [right, bottom] = [2, 3].map((k) => Math.min(box[k], face.box[k]));
      const common = Math.max(right - left, 0) * Math.max(bottom - top, 0);
      const [one, other] = [area(box), area(face.box)];
      const whole = nested ? Math.min(one, other) : one + other - common;
      return common > overlap * whole;
    });
    if (!covered) kept.push(face);
  }
  return kept;
}

function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
}
