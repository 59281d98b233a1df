// Single images out of the sheets of the page.

/** Loads the sheets; gives a function of prompt and place, on its sheet or its film, that makes the address of one image. */
async function readSheets(prompts) {
  const loaded = await Promise.all(prompts.map(async ({ sheet, film }) => ({ sheet: await decoded(sheet), film: await decoded(film) })));
  const known = new Map();
  return (prompt, place, kind = "sheet") => {
    const name = `${prompt} ${kind} ${place}`;
    if (!known.has(name)) known.set(name, cut(loaded[prompt][kind], prompts[prompt][kind], place));
    return known.get(name);
  };
}

async function decoded({ address }) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

function cut(image, { columns, size }, place) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const [left, top] = [(place % columns) * size, Math.floor(place / columns) * size];
  canvas.getContext("2d").drawImage(image, left, top, size, size, 0, 0, size, size);
  return canvas.toDataURL();
}
