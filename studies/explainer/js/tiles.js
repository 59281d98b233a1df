// Single images out of the sheets of the page.

/** Loads the sheets; gives a function of prompt and place that makes the address of one image. */
async function readSheets(prompts) {
  const loaded = await Promise.all(
    prompts.map(async ({ sheet }) => {
      const image = new Image();
      image.src = sheet.address;
      await image.decode();
      return image;
    }),
  );
  const known = new Map();
  return (prompt, place) => {
    const name = `${prompt} ${place}`;
    if (!known.has(name)) known.set(name, cut(loaded[prompt], prompts[prompt].sheet, place));
    return known.get(name);
  };
}

function cut(image, { columns, size }, place) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const [left, top] = [(place % columns) * size, Math.floor(place / columns) * size];
  canvas.getContext("2d").drawImage(image, left, top, size, size, 0, 0, size, size);
  return canvas.toDataURL();
}
